"""``segue reproduce sd3``: rules on the prompts of a file from the same seeds, image by image, scored by any callable."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from segue.engine.cli.options import Source
from segue.engine.device import resolve_device, resolve_dtype
from segue.engine.engine import Engine
from segue.engine.files import check_writable, whole_file
from segue.engine.images import read_png, save_png
from segue.engine.planning.plan import Plan
from segue.engine.prompts.engine import PromptEngine
from segue.engine.rules.preset_numbers import preset_name
from segue.engine.rules.presets import ParsedRule, parse_rule

from ..allocator import DEFAULT
from ..named_callable import named_callable
from ..quality.rows import held_rows
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import networks_of
from ..rows import Environment, Row, append_rows, make_row
from ..rows import check_writable as check_rows_writable
from ..runs import command_line
from ..suites import UNFINISHED
from ..tables import GUIDED
from ..telemetry import environment
from ..timing import once
from .durations import rows_and_durations, timed
from .inference import show
from .page import check_folder
from .scorers import PictureScorer, scores_of
from .sd3_page import COMMAND, SUITE, TITLE, sd3_content

# slg with a colon is skip-layer guidance alone; the name alone is Stability's sum with CFG, as s2 is its paper's
RULES = {"none": "none", "cfg": "cfg", "slg": "slg:", "s2": "s2", "sgg": "sgg"}
SCORED_AT_ONCE = 16


def read_prompts(path: Path, count: int | None) -> list[str]:
    """The first ``count`` lines of a text file that are not empty; raises ``ValueError`` or ``OSError``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of prompts {path}")
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompts: one a line is expected")
    if count is not None and not 1 <= count <= len(prompts):
        raise ValueError(f"count must lie between 1 and {len(prompts)}, the prompts of {path}, got {count}")
    return prompts[:count]


def chosen_rules(texts: Sequence[str] | None, engine: PromptEngine, echo: Callable[[str], None]) -> dict[str, ParsedRule]:
    """The rules by the names that tables use; by default the published ones, each with the model's numbers."""
    found = {}
    for name, text in RULES.items() if not texts else ((text, text) for text in texts):
        found[name] = parse_rule(text, engine.spec)
        for note in found[name].notes:
            echo(f"note: {note}")
    return found


@dataclass(frozen=True)
class PromptComparison:
    """Images of every prompt by every rule, prompt ``i`` from seed ``first_seed + i``, as files in ``folder``; their scores.

    ``drawing`` are keywords of :meth:`PromptEngine.generate`: steps, size, batch.  What is there is neither drawn nor scored
    again.
    """

    engine: PromptEngine
    rules: dict[str, ParsedRule]
    prompts: Sequence[str]
    scorers: dict[str, PictureScorer]
    folder: Path
    path: Path
    environment: Environment
    first_seed: int = 0
    batch: int = 1
    drawing: dict[str, Any] = field(default_factory=dict)
    limit: TimeLimit = field(default_factory=TimeLimit)
    echo: Callable[[str], None] = print

    @property
    def drawn_as(self) -> str:
        """What pictures must share to be compared, whichever prompts they are of: the network, and how it draws."""
        how = "".join(f", {name} {value}" for name, value in self.drawing.items() if value is not None)
        weights = networks_of(self.engine).rpartition(" ")[2]
        return f"{preset_name(self.engine.spec)} {weights}{how}, {str(self.engine.dtype).removeprefix('torch.')}"

    @property
    def case(self) -> str:
        """All of it: how, which prompts, from which seeds."""
        return f"{self.drawn_as}, {len(self.prompts)} prompts {_digest(*self.prompts)} from seed {self.first_seed}"

    @property
    def picture_cases(self) -> list[str]:
        """The case of every picture, prompt by prompt."""
        pairs = enumerate(self.prompts, start=self.first_seed)
        return [f"{self.drawn_as}, prompt {_digest(prompt)} from seed {seed}" for seed, prompt in pairs]

    def plan(self, rule: ParsedRule) -> Plan:
        """What a rule runs, without its size."""
        return self.engine.plan(rule.guidance, self.drawing.get("steps"))

    def image_path(self, name: str, index: int) -> Path:
        """Where the picture of a prompt by a rule is."""
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
        return self.folder / safe / f"{index:05d}.png"

    def run(self) -> int:
        """Draw and score what is missing; returns the exit code."""
        try:
            for name, rule in self.rules.items():
                self.draw(name, rule)
            for name, rule in self.rules.items():
                self.score(name, rule)
        except OutOfTimeError as error:
            self.echo(f"{error}; the same command goes on there")
            return UNFINISHED
        return 0

    def record(self, rule: ParsedRule, index: int) -> dict[str, Any]:
        """What a picture says that it is, so that one of another model, rule or prompt is not taken for it."""
        return {"drawn": self.drawn_as, "rule": rule.text, "prompt": self.prompts[index], "seed": self.first_seed + index}

    def _is_there(self, name: str, rule: ParsedRule, index: int) -> bool:
        """Whether a picture is there; ``ValueError`` for one that is of something else."""
        path = self.image_path(name, index)
        if not path.exists():
            return False
        if read_png(path)[1] != self.record(rule, index):
            raise ValueError(f"{path} is a picture of another run: choose another --images folder")
        return True

    def draw(self, name: str, rule: ParsedRule) -> None:
        """The pictures of a rule that are missing, batch by batch; each file appears whole."""
        missing = [index for index in range(len(self.prompts)) if not self._is_there(name, rule, index)]
        if missing:
            self.echo(f"{name}: {rule.text}, {len(missing)} of {len(self.prompts)} pictures to draw")
        work = self.plan(rule).cost.evaluations
        for indices in _chunks(missing, self.batch):
            with self.limit.piece(name, work * len(indices)):
                prompts, seeds = [self.prompts[i] for i in indices], [self.first_seed + i for i in indices]
                run = self.engine.generate(prompts, guidance=rule.guidance, seeds=seeds, **self.drawing)
                for index, image in zip(indices, run.images, strict=True):
                    path = self.image_path(name, index)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with whole_file(path) as part:
                        save_png(image, part, f"{self.prompts[index]}, {rule.text}", self.record(rule, index))

    def score(self, name: str, rule: ParsedRule) -> None:
        """The rows of a rule that the file lacks: a score of every picture by every scorer, and the cost."""
        held = {(row.case, row.variant, row.metric) for row in held_rows(self.path).values() if row.suite == SUITE}
        if (self.case, name, GUIDED) not in held:
            append_rows(self.path, [self._row(self.case, name, GUIDED, self.plan(rule).cost.relative, rule.text)])
        cases = self.picture_cases
        for scorer_name, scorer in self.scorers.items():
            missing = [i for i in range(len(self.prompts)) if (cases[i], name, scorer_name) not in held]
            for indices in _chunks(missing, SCORED_AT_ONCE):
                self.limit.check(f"{name} by {scorer_name}", 0.0)
                images = [_opened(self.image_path(name, index)) for index in indices]
                values = scores_of(scorer_name, scorer, images, [self.prompts[index] for index in indices])
                rows = [
                    self._row(cases[index], name, scorer_name, value, rule.text)
                    for index, value in zip(indices, values, strict=True)
                ]
                append_rows(self.path, rows)

    def _row(self, case: str, name: str, metric: str, value: float, note: str) -> Row:
        dtype = str(self.engine.dtype).removeprefix("torch.")
        return make_row(self.environment, SUITE, case, name, metric, "score", once(value), dtype, note=note)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(indices), size):
        yield indices[first : first + size]


def reproduce_sd3(
    source: Source,
    prompts: Path,
    count: int | None,
    texts: Sequence[str] | None,
    scorers: Sequence[str],
    seed: int,
    batch: int,
    drawing: dict[str, Any],
    images: Path,
    out: Path,
    minutes: float | None,
    into: Path | None,
    echo: Callable[[str], None] = print,
) -> int:
    """Draw and score what is missing within ``minutes``, write the page or print it; returns the exit code."""
    limit = TimeLimit(minutes)
    if seed < 0 or batch < 1:
        raise ValueError(f"seed must be at least 0 and batch at least 1, got {seed} and {batch}")
    found = read_prompts(prompts, count)
    named = {name: named_callable(name, "scorer") for name in scorers}
    check_rows_writable(out)
    check_writable(images, folder=True)
    device = resolve_device(source.device)
    engine = Engine.from_pretrained(source.name, device=device, dtype=resolve_dtype(source.dtype, device), **source.how)
    if not isinstance(engine, PromptEngine):
        raise ValueError(f"{source.name} takes no prompts: the folder of an SD3 pipeline is needed")
    where = environment(engine.device, command_line(), DEFAULT)
    check_folder(into, where)
    rules = chosen_rules(texts, engine, echo)
    kept = {name: value for name, value in drawing.items() if value is not None}
    comparison = PromptComparison(engine, rules, found, named, images, out, where, seed, batch, kept, limit, echo)
    for rule in rules.values():
        comparison.plan(rule)
    timed_as = f"{COMMAND} {comparison.case}"
    with timed(out, where, timed_as):
        code = comparison.run()
    rows = rows_and_durations(out, timed_as)
    command = f"segue reproduce {COMMAND} --model {source.name} --prompts {prompts}"
    content = sd3_content(rows, comparison.case, comparison.picture_cases, list(rules), list(named), command)
    show(content, into, COMMAND, TITLE, echo)
    return code
