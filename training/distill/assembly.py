"""A run of distillation from its options: network, teacher, student and trainer, all checked before the first step."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from segue.engine.device import resolve_device, resolve_dtype
from segue.engine.engine import Engine
from segue.engine.files import check_writable
from segue.engine.planning.plan import Plan
from segue.engine.prompts.encoding import PROMPT_LENGTH
from segue.engine.prompts.planning import latent_size
from segue.engine.prompts.saved_pipeline import SavedSD3
from segue.engine.rules.batch import ParsedRules, parse_rules
from segue.engine.running.progress import progress_bar
from segue.engine.sources import Reading, local_source
from segue.models.adapted import AdapterSpec
from segue.models.bundled import BUNDLED, PARENT_KEY, bundled_files, digest
from segue.models.fingerprint import fingerprint
from segue.models.layout import Hints
from segue.models.low_rank import LowRankSpec
from segue.models.sit import SiT
from segue.models.spec import ModelSpec
from segue.models.weights import load_model

from ..loop import Trainer
from ..processes import Processes, training_processes
from ..run_folder import RunFolder, Start
from ..settings import TrainSettings
from .class_student import ClassStudent, class_teacher
from .effects import SAMPLES, measured_calls, measured_effects
from .noise import Noise
from .prompt_student import PromptStudent, PromptTeacher
from .spec import DistillSpec, TrajectorySpec
from .task import DistillTask
from .teacher import Teacher

EFFECTS = "effects"  # of the facts of a run: the effect of every call on the end
DEFAULT_SETTINGS = TrainSettings(
    steps=300,
    batch_size=8,
    learning_rate=3e-3,
    warmup=20,
    ema=0.97,
    checkpoint_every=20,
    dtype="float32",
    graph=False,  # a step asks the engine, which reads levels on the host and has graphs of its own
)


@dataclass(frozen=True)
class Teaching:
    """What is distilled from what: the options of a command, as JSON values, which a resumed run finds in its record.

    ``reading`` holds the keywords of :meth:`Engine.from_pretrained` that say how ``model`` is read.
    """

    model: str
    rule: str
    reading: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    prompts: str | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    trajectories: TrajectorySpec = field(default_factory=TrajectorySpec)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Teaching":
        """The inverse of ``dataclasses.asdict``."""
        adapter = values["adapter"]
        made = AdapterSpec(LowRankSpec(**adapter["low_rank"]), adapter["scales"] and tuple(adapter["scales"]))
        return cls(**{**values, "adapter": made, "trajectories": TrajectorySpec(**values["trajectories"])})


def make_trainer(teaching: Teaching, settings: TrainSettings, out: Path, start: Start) -> Trainer:
    """The trainer of a distillation.  Raises ``ValueError`` or ``OSError`` in one sentence, before anything is written."""
    check_writable(out, folder=True)
    if start == "new" and RunFolder(out).record() is not None:
        raise ValueError(f"{out} already holds a run; resume it, replace it, or choose another folder")
    if settings.compile or settings.captured:
        raise ValueError("a distillation asks the engine at every step: leave compile and graph off")
    processes = training_processes(settings.device)
    source = local_source(teaching.model, _reading(teaching), weights=False)
    saved = SavedSD3.read(source)
    if saved is None:
        spec, teacher, student, noise = _of_classes(teaching, processes)
    else:
        spec, teacher, student, noise = _of_prompts(teaching, saved, processes)
    effects: list[float] = []
    if teaching.trajectories.weights == "effect":
        known = RunFolder(out).existing()["facts"].get(EFFECTS) if start == "resume" else None
        effects = known or _effects(teacher, noise, settings.seed, processes.device)
    task = DistillTask(spec, teacher, student, effects)
    facts = {"command": asdict(teaching)} | ({EFFECTS: effects} if effects else {})
    run: Any = spec  # of its spec the trainer asks the name and the values
    return Trainer(run, settings, out, start, source=noise, task=task, facts=facts, processes=processes)


def _effects(teacher: Teacher, noise: Noise, seed: int, device: str) -> list[float]:
    """The measured effect of every call, which a run keeps in its record."""
    begun, labels = noise.batch(0, SAMPLES, seed)
    with progress_bar("effect of errors", len(measured_calls(teacher.calls))) as advance:
        return list(measured_effects(teacher, begun.to(device), labels.tolist(), advance))


def _reading(teaching: Teaching) -> Reading:
    how = teaching.reading
    return Reading(how.get("revision"), how.get("variant"), t5=how.get("t5", True))


def resumed_teaching(out: Path) -> tuple[Teaching, dict[str, Any]]:
    """What the run in a folder distills, and its settings.  Raises ``ValueError`` for a folder without such a run."""
    record = RunFolder(out).existing()
    command = record.get("facts", {}).get("command")
    if not isinstance(command, dict) or "trajectories" not in command:
        raise ValueError(f"the run in {out} is no distillation; segue train goes on with it")
    return Teaching.from_dict(command), record["settings"]


def run_name(model: str, rule: str) -> str:
    """``herbarium-sgg``: the model and the first word of the rule."""
    return f"{Path(model).name or 'model'}-{rule.split(':')[0].split('+')[0].strip()}"


def _rule(teaching: Teaching, spec: ModelSpec) -> Any:
    parsed = parse_rules(teaching.rule, spec)
    if isinstance(parsed, ParsedRules):
        raise ValueError(f"distillation takes one rule, got {teaching.rule!r}")
    return parsed


def _of_classes(teaching: Teaching, processes: Processes) -> tuple[DistillSpec, Teacher, ClassStudent, Noise]:
    """A student that takes labels."""
    for name in ("prompts", "negative_prompt", "height", "width"):
        if getattr(teaching, name) is not None:
            raise ValueError(f"{teaching.model} is a class-label model and takes no {name.replace('_', ' ')}")
    device = resolve_device(processes.device)
    how = dict(teaching.reading)
    engine = Engine.from_pretrained(teaching.model, device=device, dtype=torch.float32, vae=False, **how)
    if not isinstance(engine.models["main"], SiT):
        raise ValueError(f"{teaching.model} is a transformer without text encoders; distillation needs the pipeline's folder")
    rule, wanted = _rule(teaching, engine.spec), teaching.trajectories
    plan = engine.plan(rule.guidance, wanted.steps, teaching.schedule, wanted.solver)
    hints = {name: how.get(name) for name in ("family", "heads", "exit_layer", "variant")}
    network = load_model(local_source(teaching.model, _reading(teaching)), **hints)[0]
    spec = _spec(teaching, rule.text, fingerprint({"main": network}), plan)
    header = {PARENT_KEY: digest(bundled_files(teaching.model)["main"])} if teaching.model in BUNDLED else {}
    student = ClassStudent(network, spec, plan, header)
    shape = (plan.spec.channels, plan.height, plan.width)
    noise = Noise(f"noise for {plan.spec.name}", shape, engine.spec.num_classes, engine.spec.class_names)
    return spec, class_teacher(engine, plan), student, noise


def _of_prompts(teaching: Teaching, saved: SavedSD3, processes: Processes) -> tuple[DistillSpec, Teacher, PromptStudent, Noise]:
    """A student that takes prompts."""
    Hints(*(teaching.reading.get(name) for name in ("family", "heads", "exit_layer"))).refuse(
        ("family", "heads", "exit_layer"), f"{teaching.model} states what it is"
    )
    if teaching.reading.get("models"):
        raise ValueError(f"a further network does not apply: the student of {teaching.model} is taught by itself")
    if teaching.adapter.scales is not None:
        raise ValueError("the scale is an input for DiT and SiT only: leave --scales out for Stable Diffusion 3")
    if teaching.prompts is None:
        raise ValueError(f"{teaching.model} takes prompts: give a text file of them, one a line, by --prompts")
    prompts = read_prompts(Path(teaching.prompts))
    rule, wanted = _rule(teaching, saved.spec), teaching.trajectories
    size = latent_size(saved.spec, saved.factor, teaching.height, teaching.width)
    device = resolve_device(processes.device)
    held = PromptTeacher(
        local_source(teaching.model, _reading(teaching)), device, resolve_dtype(None, device), _reading(teaching)
    )
    negative = teaching.negative_prompt or ""
    held.encode(prompts, negative, PROMPT_LENGTH)
    text_tokens = held.embeddings.positive.context.shape[1]
    plan = held.engine.plan(rule.guidance, wanted.steps, teaching.schedule, wanted.solver, *size, text_tokens=text_tokens)
    digits = hashlib.sha256("\n".join((negative, *prompts)).encode()).hexdigest()[:16]
    weights = fingerprint({"main": held.engine.models["main"]})
    spec = replace(_spec(teaching, rule.text, weights, plan), conditions=digits)
    shape = (plan.spec.channels, plan.height, plan.width)
    return spec, held.teacher(plan), PromptStudent(held, spec), Noise("noise", shape, len(prompts))


def _spec(teaching: Teaching, rule: str, weights: str, plan: Plan) -> DistillSpec:
    name = run_name(teaching.model, rule)
    return DistillSpec(
        name,
        teaching.model,
        weights,
        rule,
        plan.height,
        plan.width,
        adapter=teaching.adapter,
        trajectories=teaching.trajectories,
    )


def read_prompts(path: Path) -> Sequence[str]:
    """The lines of a text file that are not blank.  Raises ``ValueError`` or ``OSError`` for one without any."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; expected one a line")
    return prompts
