"""Rows with a second text, for normalized attention guidance: against diffusers' transformer, work, capture, gradients."""

from dataclasses import replace

import pytest
import torch
from clocks import at_times
from counted_rows import counted_rows
from full_depth_sd3 import CHANNELS, POOLED_DIM, TEXT_DIM, Inputs, diffusers_sd3, reference
from nag_processor import nag_reference
from step_trace import check_step
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from segue import CFG, NAG, PerturbedLayers, SkipLayer, Window, flow_shift
from segue.engine.core import EngineCore
from segue.engine.planning.compile import compile_plan
from segue.kernels.dispatch import select_kernels
from segue.kernels.record import REFERENCE
from segue.models.mmdit import MMDiT, TextCondition
from segue.models.mmdit_diffusers import from_diffusers
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.registry import make_rows
from segue.models.rows import FULL, SKIP, Path, RowLayout

pytest.importorskip("diffusers")

DEPTH = 5
# Absolute, on outputs of unit size: 5 blocks of fp32 products and norms, each rounding to 6e-8, parts joined in another order.
PARITY = 1e-5
# Relative to the largest latent: the error of a forward, through 6 guided steps with weights up to 2.
RUN_PARITY = 1e-5
NUMBERS = (5.0, 2.5, 0.25)
ARCHITECTURES = {"sd3-medium": {}, "sd3.5-medium": {"dual_attention_layers": (0, 1, 2)}, "sd3.5-large": {}}
ON_CPU = select_kernels(torch.device("cpu"), torch.float32, backend="reference").kernels


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    """diffusers' transformer and ours on the same weights: of 5 blocks, dual attention in 3 of them where there is any."""
    theirs = diffusers_sd3(request.param, seed=8, num_layers=DEPTH, **ARCHITECTURES[request.param])
    return theirs, from_diffusers(theirs)


def inputs_of(seed: int, height: int, width: int, batch: int, text: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    contexts, pooled = (draw(batch, text, TEXT_DIM) for _ in range(2)), (draw(batch, POOLED_DIM) for _ in range(2))
    return Inputs(draw(batch, CHANNELS, height, width), 1000 * torch.rand(batch, generator=generator), (*contexts,), (*pooled,))


def conditions(inputs: Inputs) -> list[TextCondition]:
    return [TextCondition(context, pooled) for context, pooled in zip(inputs.contexts, inputs.pooled, strict=True)]


def rows_for(model: MMDiT, inputs: Inputs, layout: RowLayout, kernels=ON_CPU):
    batch, _, height, width = inputs.x.shape
    texts = {"text_tokens": inputs.contexts[0].shape[1], "text_blocks": sum(layout.texts)}
    settings = {"row_blocks": len(layout.blocks), "slots": 2, "times": batch, "conditions": 2 * batch}
    rows = make_rows(model, batch, height, width, **settings, **texts, kernels=kernels)
    rows.load(inputs.time.double(), conditions(inputs))
    return rows


def path(condition: int, layers=(), operation: str = SKIP) -> Path:
    return Path(condition, tuple(operation if layer in layers else FULL for layer in range(DEPTH)))


def outputs(rows, inputs: Inputs, layout: RowLayout, numbers=NUMBERS) -> torch.Tensor:
    batch = len(inputs.x)
    each = torch.tensor(numbers, dtype=torch.float32).expand(batch, 3)
    return rows.forward(inputs.x, at_times(torch.arange(batch)), layout, None, normalized=each)


# [height, width] of the latent, samples, text tokens: odd token counts, the text shorter and longer than the image
SIZES = [((6, 10), 1, 13), ((14, 10), 2, 3), ((2, 6), 3, 7), ((6, 6), 2, 1), ((18, 14), 3, 154), ((18, 14), 2, 333)]


@pytest.mark.parametrize("kernels", [ON_CPU, REFERENCE], ids=["by parts", "two attentions"])
@pytest.mark.parametrize("size, batch, text", SIZES, ids=str)
@torch.no_grad()
def test_against_processors_of_diffusers(pair, size, batch, text, kernels):
    """The conditional rows and a copy that skips blocks are guided, the unconditional rows are not."""
    theirs, model = pair
    inputs = inputs_of(1, *size, batch, text)
    layout = RowLayout((path(0), path(1), path(0, (2, 3)), path(0, (DEPTH - 1,))), DEPTH, {0: 1})
    out = outputs(rows_for(model, inputs, layout, kernels), inputs, layout)
    expected = [
        nag_reference(theirs, inputs, NUMBERS),
        reference(theirs, inputs, 1),
        nag_reference(theirs, inputs, NUMBERS, (2, 3)),
        nag_reference(theirs, inputs, NUMBERS, (DEPTH - 1,)),
    ]
    assert (expected[0] - reference(theirs, inputs)).abs().max() > 1e-3
    for i, wanted in enumerate(expected):
        assert (out[i] - wanted).abs().max() <= PARITY, i


@torch.no_grad()
def test_texts_of_a_row_do_not_meet_those_of_another(pair):
    """What a sample and a branch give does not depend on the others of their batch, nor on what ran in the buffers before."""
    _, model = pair
    inputs = inputs_of(2, 6, 10, 3, 5)
    every = RowLayout((path(1), path(0), path(0, (1,))), DEPTH, {0: 1})  # one text first, then two
    rows = rows_for(model, inputs, every)
    together = outputs(rows, inputs, every)
    for i, one in enumerate(every.paths[1:], start=1):
        alone = RowLayout((one,), DEPTH, {0: 1})
        assert (outputs(rows, inputs, alone)[0] - together[i]).abs().max() <= PARITY
    assert torch.equal(outputs(rows, inputs, every), together)
    plain = RowLayout((path(0), path(1)), DEPTH)
    unguided = rows.forward(inputs.x, at_times(torch.arange(3)), plain, None)
    assert (unguided[1] - together[0]).abs().max() <= PARITY
    assert (unguided[0] - together[1]).abs().max() > 1e-3


@torch.no_grad()
def test_numbers_of_each_sample_and_neutral_ones(pair):
    _, model = pair
    inputs = inputs_of(3, 6, 10, 3, 5)
    layout = RowLayout((path(0),), DEPTH, {0: 1})
    rows = rows_for(model, inputs, layout)
    numbers = torch.tensor([[5.0, 2.5, 0.25], [1.0, 1.0, 0.0], [3.0, 1.0, 1.0]])
    mixed = rows.forward(inputs.x, at_times(torch.arange(3)), layout, None, normalized=numbers)[0]
    for i, own in enumerate(numbers):
        assert (mixed[i] - outputs(rows, inputs, layout, own.tolist())[0, i]).abs().max() <= PARITY
    plain = rows.forward(inputs.x, at_times(torch.arange(3)), RowLayout((path(0),), DEPTH), None)[0]
    assert (mixed[1] - plain[1]).abs().max() <= PARITY


# --- plans and runs ---------------------------------------------------------------------------------------------------


def run(model: MMDiT, inputs: Inputs, rule, steps: int = 6, **options):
    """The latents; the rows that ran are those of the plan."""
    height, width = inputs.x.shape[2:]
    spec = replace(model.spec, text_tokens=inputs.contexts[0].shape[1])
    plan = compile_plan(rule, flow_shift(steps), "euler", spec, height, width)
    prompts = dict(zip(("cond", "uncond"), conditions(inputs), strict=True))
    with counted_rows() as rows:
        latents = EngineCore(model, device="cpu", **options).run(plan, prompts, [0] * len(inputs.x), inputs.x)[0]
    # counted where the texts are: one of every row, and the second ones
    assert sum(rows) == len(inputs.x) * (plan.cost.blocks + plan.cost.text_blocks)
    return latents


@torch.no_grad()
def test_a_run_equals_a_loop_over_diffusers(pair):
    """NAG in a window, with CFG and a skip-layer branch on top in windows of their own."""
    theirs, model = pair
    inputs, steps = inputs_of(4, 6, 10, 2, 9), 6
    rule = NAG(5.0, alpha=0.25, window=Window.steps(1, 4)) + CFG(3.0, window=Window.steps(2, 3))
    latents = run(model, inputs, rule + SkipLayer(1.0, (1, 2), window=Window.steps(3, 6)))
    x, sigmas = inputs.x.clone(), flow_shift(steps).sigmas
    for i in range(steps):
        now = replace(inputs, x=x, time=torch.full((2,), 1000 * sigmas[i]))
        strong, weak = reference(theirs, now), reference(theirs, now, 0, (1, 2))
        if i < 4:
            strong, weak = nag_reference(theirs, now, NUMBERS), nag_reference(theirs, now, NUMBERS, (1, 2))
        velocity = strong + 2.0 * (strong - reference(theirs, now, 1)) * (1 <= i < 3) + (strong - weak) * (i >= 2)
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
    assert (latents - x).abs().max() <= RUN_PARITY * x.abs().max()


@torch.no_grad()
def test_neutral_rules_are_unguided_bit_for_bit(pair):
    _, model = pair
    inputs = inputs_of(5, 6, 10, 2, 9)
    unguided = run(model, inputs, None)
    for rule in (NAG(1.0), NAG(7.0, alpha=0.0), NAG([1.0, 5.0], alpha=[0.5, 0.0]), NAG(5.0, window=Window.sigma(1, 1))):
        assert torch.equal(run(model, inputs, rule), unguided), rule
    assert not torch.equal(run(model, inputs, NAG(5.0)), unguided)


def attention_flops(q, k, v, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(q, k, v)


@torch.no_grad()
def test_counted_flops_equal_the_plan(pair):
    """Products and attentions of a call as PyTorch counts them, with every set of branches."""
    _, model = pair
    inputs = inputs_of(6, 6, 10, 2, 9)
    spec = replace(model.spec, text_tokens=9)
    plan = compile_plan(
        CFG(2.0) + SkipLayer(1.0, (2, 3)) + SkipLayer(1.0, (4,)) + NAG(5.0), flow_shift(4), "euler", spec, 6, 10
    )
    rows = rows_for(model, inputs, plan.layout((0, 1, 2, 3, 4)))
    custom = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    for live in ((0, 4), (0, 1, 4), (0, 2, 4), (0, 1, 2, 3, 4), (0, 1, 2, 3)):
        layout = plan.layout(live)
        normalized = {"normalized": torch.tensor(NUMBERS).expand(2, 3)} if layout.joined else {}
        coefficients = torch.ones(2, len(plan.outputs(live)))
        with FlopCounterMode(display=False, custom_mapping=custom) as counter:
            rows.forward(inputs.x, at_times(torch.arange(2)), layout, coefficients, **normalized)
        assert counter.get_total_flops() == 2 * plan.call_cost(live)[2], live


@pytest.mark.parametrize("kind", ["skip", "attention_blur"])
def test_a_step_can_be_captured(pair, kind):
    """Steps with one live set do the same operations on the same storages, without synchronising with the host."""
    _, model = pair
    inputs, engine = inputs_of(7, 6, 10, 2, 7), EngineCore(model, device="cpu")
    rule = NAG([5.0, 3.0], window=Window.steps(1, 3)) + CFG(2.0) + PerturbedLayers(1.0, layers=(2, 4), kind=kind)
    plan = compile_plan(rule, flow_shift(6), "euler", replace(model.spec, text_tokens=7), 6, 10)
    prompts = dict(zip(("cond", "uncond"), conditions(inputs), strict=True))
    program = engine.prepare(plan, prompts, [0, 0], inputs.x)
    assert len(plan.live_sets) == 2
    for live in plan.live_sets:
        check_step(program, live)


# --- cost -------------------------------------------------------------------------------------------------------------


def published(depth: int, heads: int, dual: int = 0) -> MMDiTSpec:
    sizes = {"channels": 16, "height": 128, "width": 128, "patch": 2, "dim": 64 * heads, "depth": depth, "heads": heads}
    return MMDiTSpec(name="published", dual_layers=tuple(range(dual)), **sizes)


@pytest.mark.parametrize(
    "spec, most, told, twice",
    [
        (published(24, 24), 1.10, "1.0963", "1.3743"),
        (published(24, 24, dual=13), 1.08, "1.0762", "1.2962"),
        (published(38, 38), 1.095, "1.0903", "1.2897"),
    ],
    ids=["SD3-medium", "SD3.5-medium", "SD3.5-large"],
)
def test_published_costs(spec, most, told, twice):
    """1024 x 1024 with 333 text tokens over unguided sampling, rounded in ``docs/guidance.md``, and by two whole attentions."""
    plan = compile_plan(NAG(5.0), flow_shift(28), "euler", spec)
    relative = plan.cost.relative
    image_scores = spec.depth * 4 * spec.tokens(128, 128) ** 2 * spec.dim  # which serve both texts here
    whole = relative + image_scores / spec.forward_flops(128, 128)
    assert relative <= most
    assert (f"{relative:.4f}", f"{whole:.4f}") == (told, twice)
    assert (plan.cost.evaluations, plan.cost.blocks, plan.cost.text_blocks) == (28, 28 * spec.depth, 28 * spec.depth)
    half = compile_plan(NAG(5.0, window=Window.fraction(0, 0.5)), flow_shift(28), "euler", spec).cost
    assert half.relative == pytest.approx(1 + (relative - 1) / 2, abs=1e-3)
