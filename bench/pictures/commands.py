"""``segue bench demo``, ``quality`` and ``calls``: what the commands accept.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

from pathlib import Path
from typing import Annotated

import typer

from segue.engine.cli.options import RULE_NAMES

SCORES = Path("bench/results/quality.jsonl")
JUDGE = "herbarium-judge"

ScoresOption = Annotated[Path, typer.Option("--scores", help="JSON-lines file of segue score.")]
RulesOption = Annotated[list[str] | None, typer.Option(*RULE_NAMES, help="A rule as in segue sample; repeat it.")]
JudgeOption = Annotated[
    str, typer.Option("--judge", help="The classifier that tells what a leaf looks like, as in segue score.")
]
JudgesOption = Annotated[
    list[str] | None,
    typer.Option("--judge", help="Whose scores are shown, as in segue score; repeat it.  Default herbarium-judge."),
]
PlotOption = Annotated[Path, typer.Option("--out", "-o", help="PNG file to write; needs matplotlib.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


def register(bench: typer.Typer) -> None:
    """Add the commands to ``bench``."""
    bench.command()(demo)
    bench.command()(quality)
    bench.command()(calls)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file to write.")] = Path("out/demo.png"),
    guidance: RulesOption = None,
    classes: Annotated[
        str | None, typer.Option(help="Species: numbers, ranges, names or genera.  Default: two of every genus.")
    ] = None,
    judge: JudgeOption = JUDGE,
    scores: ScoresOption = SCORES,
    device: DeviceOption = None,
    zoom: Annotated[int | None, typer.Option(min=1, help="Enlargement; default to about 96 pixels.")] = None,
    force: ForceOption = False,
) -> None:
    """Real leaves above the same leaves by several rules; those that a classifier takes for another species are marked.

    Costs are counted, accuracy and Frechet distance are those of the file of scores.

    [bold]Example[/bold]

    segue bench demo -g none -g sgg --classes Acerites --out acerites.png
    """
    from .demo_command import draw_demo

    draw_demo(out, guidance, classes, judge, scores, device, zoom, force)


def quality(
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file to write; needs matplotlib.")] = Path(
        "out/quality-cost.png"
    ),
    model: Annotated[str | None, typer.Option("--model", "-m", help="As in segue score; default herbarium.")] = None,
    judge: JudgesOption = None,
    scores: ScoresOption = SCORES,
    force: ForceOption = False,
) -> None:
    """Quality against cost: every scored rule of a model as one point, and the front that no rule is before.

    [bold]Example[/bold]

    segue bench quality --out docs/quality-cost.png
    """
    from .quality_command import plot_quality

    plot_quality(out, model, judge or (JUDGE,), scores, force)


def calls(
    out: Annotated[Path, typer.Option("--out", "-o", help="WebP or GIF file to write.")] = Path("out/live-branches.webp"),
    guidance: RulesOption = None,
    classes: Annotated[str | None, typer.Option(help="Species: numbers, ranges, names or genera.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture.")] = 0,
    steps: Annotated[int, typer.Option(help="Calls of a run.")] = 28,
    device: DeviceOption = None,
    force: ForceOption = False,
) -> None:
    """An animation of runs side by side: what each call takes the sample for, and which branches it evaluates.

    [bold]Example[/bold]

    segue bench calls -g none -g sgg --out docs/live-branches.webp
    """
    from .calls_command import animate_calls

    animate_calls(out, guidance, classes, seed, steps, device, force)
