"""An animation of runs side by side: the estimates of each call above bars of the branches that it evaluates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from segue.engine.cli.sheets import BACKGROUND, FAINT, INK
from segue.engine.images import latents_to_images
from segue.engine.planning.plan import Plan
from segue.engine.rules.branch import Branch

from .estimates import Estimates, branch_costs

ZOOM, GAP, MARGIN, BETWEEN = 3, 6, 18, 36
TITLE, SMALL = 17, 13
BAR, BARS = 26, 2.2  # pixels of one evaluation, and how many find room
CONDITION, UNCONDITIONAL, WEAK, PAST = (70, 74, 82), (47, 111, 181), (192, 127, 18), 0.72
FRAME_MS, LAST_MS = 220, 2600
FORMATS: dict[str, dict[str, Any]] = {".webp": {"quality": 90, "method": 6}, ".gif": {"optimize": True}}
KINDS = {"condition": CONDITION, "no condition": UNCONDITIONAL, "weak branch": WEAK}


def kind_of(branch: Branch) -> str:
    """What a branch is to who sees it for the first time."""
    if branch.network is not None or branch.model != "main":
        return "weak branch"
    return "condition" if branch.is_conditional else "no condition"


def frames(runs: Sequence[Estimates], columns: int) -> list[Image.Image]:
    """One picture for each call; the pictures of a run stand in so many columns."""
    size = runs[0].pictures.shape[-1] * ZOOM
    width = columns * (size + GAP) - GAP
    rows = -(-runs[0].pictures.shape[1] // columns)
    heights = (TITLE + SMALL + 18, rows * (size + GAP) + 8, round(BARS * BAR), 3 * SMALL)
    whole = (len(runs) * (width + BETWEEN) - BETWEEN + 2 * MARGIN, sum(heights) + 2 * MARGIN)
    made = []
    for call in range(len(runs[0].pictures)):
        frame = Image.new("RGB", whole, BACKGROUND)
        for place, run in enumerate(runs):
            corner = (MARGIN + place * (width + BETWEEN), MARGIN)
            _draw_run(frame, run, call, corner, width, columns, heights)
        _draw_key(ImageDraw.Draw(frame), runs[0].plan, call, whole)
        made.append(frame)
    return made


def save_animation(path: Path, pictures: Sequence[Image.Image], suffix: str) -> None:
    """Write an animation that repeats, its last frame longer than the others, in the format of ``suffix``."""
    times = [FRAME_MS] * (len(pictures) - 1) + [LAST_MS]
    first, *others = pictures
    form = FORMATS[suffix] | {"format": suffix.removeprefix(".")}
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, **form)


def _draw_run(
    frame: Image.Image,
    run: Estimates,
    call: int,
    corner: tuple[int, int],
    width: int,
    columns: int,
    heights: Sequence[int],
) -> None:
    """One rule: its name and cost, the estimates of the call, and the bars of all calls."""
    (left, top), draw = corner, ImageDraw.Draw(frame)
    draw.text((left, top), run.rule.title, INK, _font(TITLE))
    draw.text((left, top + TITLE + 6), f"{run.plan.cost.relative:.2f}x the FLOPs of unguided sampling", FAINT, _font(SMALL))
    top += heights[0]
    for index, image in enumerate(latents_to_images(run.pictures[call])):
        side = image.width * ZOOM
        place = (left + index % columns * (side + GAP), top + index // columns * (side + GAP))
        frame.paste(image.resize((side, side), Image.Resampling.NEAREST), place)
    _draw_bars(draw, run.plan, call, (left, top + heights[1] + heights[2]), width)


def _draw_bars(draw: ImageDraw.ImageDraw, plan: Plan, call: int, corner: tuple[int, int], width: int) -> None:
    """From ``corner`` (left, bottom) up: what every call evaluates, as high as it costs; calls to come are pale."""
    (left, bottom), step = corner, width / plan.calls
    for each in range(plan.calls):
        base = float(bottom)
        for branch, cost in branch_costs(plan, each):
            colour = KINDS[kind_of(plan.branches[branch])]
            height = cost * BAR
            box = (left + each * step, base - height, left + (each + 1) * step - 2, base - 1)
            draw.rectangle(box, fill=colour if each <= call else _pale(colour))
            base -= height
    marker = left + (call + 0.5) * step - 1
    draw.polygon([(marker - 4, bottom + 9), (marker + 4, bottom + 9), (marker, bottom + 2)], fill=INK)


def _draw_key(draw: ImageDraw.ImageDraw, plan: Plan, call: int, whole: tuple[int, int]) -> None:
    """Which call it is, and what the colours of the bars are."""
    font, line = _font(SMALL), whole[1] - MARGIN - SMALL
    draw.text(
        (MARGIN, line),
        f"call {call + 1} of {plan.calls}, noise {plan.sigmas[call]:.0%}: what it takes the pictures for",
        INK,
        font,
    )
    place = float(whole[0] - MARGIN)
    for name, colour in reversed(KINDS.items()):
        place -= font.getlength(name)
        draw.text((place, line), name, FAINT, font)
        place -= SMALL + 4
        draw.rectangle((place, line + 2, place + SMALL - 3, line + SMALL - 1), fill=colour)
        place -= 18


def _pale(colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(round(PAST * paper + (1 - PAST) * own) for own, paper in zip(colour, BACKGROUND, strict=True))


def _font(size: int):
    return ImageFont.load_default(size)
