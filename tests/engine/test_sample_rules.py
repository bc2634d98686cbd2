"""Rules with a number for each sample, and a rule for each: every sample of the batch is what its own rule draws."""

import math
from itertools import cycle

import numpy as np
import pytest
import torch
from attached_runs import draw, draw_attached, relative_error
from counted_rows import planned_rows
from tiny_dit import tiny_dit_pipeline
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import APG, CFG, SGG, AutoGuidance, CFGZeroStar, EarlyExit, Engine, Rescale, SkipLayer, Window
from segue.engine.core import EngineCore
from segue.engine.planning.compile import Request, compile_batch
from segue.engine.planning.schedule import linear
from tests.tolerances import ATTACHED_RUN

LABELS, SEEDS, SCALES = [0, 3, 5], [7, 8, 9], [1.5, 4.0, 2.5]
RUN = {"steps": 6, "seeds": SEEDS}
# rules of one batch, which have all numbers and live sets in common but their scales, and what each sample has
LIKE = {
    "cfg": (CFG(SCALES), [CFG(scale) for scale in SCALES]),
    "delta": (CFG(3.0, delta=[0.5, 0.0, -0.3]), [CFG(3.0, delta=delta) for delta in (0.5, 0.0, -0.3)]),
    "segmented": (
        SGG(CFG(SCALES), SkipLayer([0.5, 1.0, 2.0], (1, 3)), 0.5),
        [SGG(CFG(scale), SkipLayer(weight, (1, 3)), 0.5) for scale, weight in zip(SCALES, (0.5, 1.0, 2.0), strict=True)],
    ),
    "channels": (CFG(SCALES, channels=2), [CFG(scale, channels=2) for scale in SCALES]),
    "exit": (EarlyExit(torch.tensor([0.5, 1.0, 2.0]), 2), [EarlyExit(weight, 2) for weight in (0.5, 1.0, 2.0)]),
    "weak network": (AutoGuidance(np.array([0.5, 1.0, 2.0])), [AutoGuidance(weight) for weight in (0.5, 1.0, 2.0)]),
    "reused": (CFG(SCALES).reused(2), [CFG(scale).reused(2) for scale in SCALES]),
    "rescale": (
        CFG(SCALES) + Rescale([0.2, 0.0, 1.0]),
        [CFG(1.5) + Rescale(0.2), CFG(4.0) + Rescale(0), CFG(2.5) + Rescale(1)],
    ),
    "apg": (
        CFG(SCALES) + APG([0.3, 0.0, -0.5], [1.0, 5.0, math.inf], [0.0, 0.5, 1.0]),
        [CFG(1.5) + APG(0.3, 1.0, 0.0), CFG(4.0) + APG(0.0, 5.0, 0.5), CFG(2.5) + APG(-0.5, math.inf, 1.0)],
    ),
    "zero-star": (CFG(SCALES) + CFGZeroStar(1), [CFG(scale) + CFGZeroStar(1) for scale in SCALES]),
}
STRONG = CFG(3.0, window=Window.steps(1, 3)) + SkipLayer(1.0, (1,), window=Window.steps(2, 6))
MIXED = [CFG(2.0), STRONG, None]


@pytest.fixture(
    scope="module", params=[{}, {"prediction": "epsilon", "time": "discrete", "out_channels": 8}], ids=["flow", "dit"]
)
def engine(request):
    weak = tiny_sit(3, **(request.param | {"depth": 2, "exits": ()}))
    return Engine(tiny_sit(**request.param), {"weak": weak}, device="cpu")


@pytest.fixture(scope="module")
def flow():
    return Engine(tiny_sit(), device="cpu")


def in_the_same_batch(engine, rules, **options) -> torch.Tensor:
    """Every sample from a run of the whole batch under its own rule."""
    runs = [engine.sample(LABELS, rule, **(RUN | options)) for rule in rules]
    return torch.stack([run.latents[i] for i, run in enumerate(runs)])


@pytest.mark.parametrize(("name", "solver"), [*zip(LIKE, cycle(["heun", "dpm++2m", "euler-maruyama"]), strict=False)])
def test_numbers_of_samples_change_no_bit_of_theirs(engine, name, solver):
    """Where the live sets are the same a sample is the same to the bit, whatever the others have."""
    if name == "zero-star" and engine.spec.prediction == "epsilon":
        pytest.skip("CFG-Zero* acts on velocities")
    together, alone = LIKE[name]
    assert [together.of_sample(i) for i in range(3)] == alone
    run = engine.sample(LABELS, together, solver=solver, **RUN)
    assert len({tuple(latent.flatten().tolist()) for latent in run.latents}) == 3
    assert torch.equal(run.latents, in_the_same_batch(engine, alone, solver=solver))


@pytest.mark.filterwarnings("ignore::segue.PlanWarning")  # of windows that overlap, as is meant here
def test_rules_of_samples_are_those_of_each(engine):
    run = engine.sample(LABELS, MIXED, **RUN)
    assert run.plan.live == ((0, 1), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2))
    expected = in_the_same_batch(engine, MIXED)
    assert relative_error(run.latents, expected) < 1e-5


@pytest.mark.parametrize("correction", [None, Rescale(0.7), APG(-0.5, 3.0, 0.3), CFGZeroStar()], ids=str)
def test_a_neutral_sample_of_a_guided_batch_is_unguided(flow, correction):
    """Its scale is 1, or it has no rule at all; what corrects the others changes nothing of it."""
    plain = flow.sample(LABELS, None, **RUN).latents
    rule = CFG([4.0, 1.0, 2.0]) if correction is None else CFG([4.0, 1.0, 2.0]) + correction
    guided = flow.sample(LABELS, rule, **RUN).latents
    assert relative_error(guided[1:2], plain[1:2]) < 1e-5 < relative_error(guided[::2], plain[::2])
    guided = flow.sample(LABELS, [rule.of_sample(0), None, "none"], **RUN).latents
    assert relative_error(guided[1:], plain[1:]) < 1e-5


def test_a_rule_without_the_correction_of_the_others_is_not_corrected(flow):
    for correction in (Rescale(0.7), APG(-0.5, 3.0, 0.3)):
        rules = [CFG(3.0), CFG(3.0) + correction, SkipLayer(1.0, (1,))]
        assert relative_error(flow.sample(LABELS, rules, **RUN).latents, in_the_same_batch(flow, rules)) < 1e-5


def test_batches_and_parts_of_a_run(flow):
    """A sample has its own number in whichever of several batches it is drawn, and a batch runs what its samples need."""
    rule, seen = CFG([1.0, 1.0, 4.0]), []
    whole = flow.sample(LABELS, rule, **RUN)
    parts = flow.sample(LABELS, rule, max_batch=2, callback=lambda info: seen.append(info.live), **RUN)
    assert relative_error(parts.latents, whole.latents) < 1e-5
    assert seen == [(0,)] * 6 + [(0, 1)] * 6 and whole.plan.live == ((0, 1),) * 6


def test_a_plan_tells_the_range_of_its_samples(flow):
    plan = flow.plan(SGG(CFG([1.0, 4.0]), SkipLayer(0.5, (1,)), 0.5), steps=6)
    assert "uncond (w 0 to 3 by sample)" in str(plan) and "skip 1 (w 0.5)" in str(plan)
    assert plan.cost == flow.plan(SGG(CFG(4.0), SkipLayer(0.5, (1,)), 0.5), steps=6).cost
    assert plan.weights.shape == (2, 6, 2) and np.array_equal(plan.samples[1].weights, plan.weights[1])
    assert plan.to_dict()["weights"] == plan.weights.tolist()
    uneven = flow.plan([CFG(2.0, window=Window.steps(9, 12)), CFG(2.0)], steps=6)
    assert [warning for warning in uneven.warnings if warning.endswith("(sample 0)")] == list(uneven.warnings) != []
    assert flow.plan([CFG(2.0)] * 2, steps=6).cost.relative == flow.plan(CFG(2.0), steps=6).cost.relative


# --- other loops and other doors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [CFG(SCALES), MIXED, [CFG(4.0).reused(2), SkipLayer(1.0, (1,)).reused(3), None]], ids=str)
def test_a_denoiser_of_samples_at_levels_of_their_own(flow, rule):
    """Each as its own rule says at its own level of a run, while the others are elsewhere in theirs."""
    levels = torch.linspace(1, 0, 7)
    x = flow.draw_noise(flow.plan(None, 1), SEEDS)
    rules = rule if isinstance(rule, list) else [rule.of_sample(i) for i in range(3)]
    together = flow.denoiser(rule, LABELS, schedule=levels.tolist())
    alone = [flow.denoiser(one, [label], schedule=levels.tolist()) for one, label in zip(rules, LABELS, strict=True)]
    for step in range(4):
        at = levels[torch.tensor([step, step + 1, step + 2])]
        expected = torch.cat([one(x[i : i + 1], at[i : i + 1]) for i, one in enumerate(alone)])
        assert relative_error(together(x, at), expected) < 1e-5


def test_gradients_are_those_of_each_sample(flow):
    x = flow.draw_noise(flow.plan(None, 1), SEEDS).requires_grad_()
    sigma = torch.full((3,), 0.6)
    mine = torch.autograd.grad(flow.denoiser(CFG(SCALES), LABELS).velocity(x, sigma).square().sum(), x)[0]
    for i, scale in enumerate(SCALES):
        alone = torch.autograd.grad(flow.denoiser(CFG(scale), LABELS).velocity(x, sigma).square().sum(), x)[0]
        assert torch.equal(mine[i], alone[i])


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(seed=5)


PROMPTS = {"prompt": ["leaf", "bee", "oak"], "negative_prompt": "dull"}


def test_prompts_are_guided_as_the_pipeline_guides_each(pipe):
    """The oracle is the pipeline, which has one scale for all of its samples."""
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = [draw(pipe, latents=noise, guidance_scale=scale, **PROMPTS)[i] for i, scale in enumerate(SCALES)]
    engine = Engine.from_pipe(pipe)
    settings = {"noise": noise, "steps": 5, "max_sequence_length": T5_TOKENS, "output": "latent"}
    run = engine.generate(PROMPTS["prompt"], PROMPTS["negative_prompt"], CFG(SCALES), **settings)
    assert relative_error(run.latents, torch.stack(plain)) < ATTACHED_RUN
    attached = draw_attached(pipe, CFG(SCALES), latents=noise, guidance_scale=4.0, **PROMPTS)
    assert relative_error(attached.latents, torch.stack(plain)) < ATTACHED_RUN
    assert attached.rows == planned_rows(attached.plan, 3)


def test_a_scheduler_that_makes_its_own_steps_makes_those_of_all_samples(pipe):
    from diffusers import UniPCMultistepScheduler

    multistep = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    stepping = tiny_pipeline(seed=5, scheduler=multistep)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = [draw(stepping, latents=noise, guidance_scale=scale, **PROMPTS)[i] for i, scale in enumerate(SCALES)]
    engine = Engine.from_pipe(stepping)
    settings = {"noise": noise, "steps": 5, "max_sequence_length": T5_TOKENS, "output": "latent"}
    run = engine.generate(PROMPTS["prompt"], PROMPTS["negative_prompt"], CFG(SCALES), **settings)
    assert relative_error(run.latents, torch.stack(plain)) < ATTACHED_RUN
    requests = [Request(None, run.plan.schedule, run.plan.solver), Request(CFG(2.0), run.plan.schedule)]
    with pytest.raises(ValueError, match="makes the steps of a whole batch itself: it cannot serve some of its samples"):
        compile_batch(requests, engine.specs)


def test_a_dit_pipeline_guides_each_as_it_guides_all():
    pipe = tiny_dit_pipeline(classes=1000)
    pipe.set_progress_bar_config(disable=True)

    def pictures(rule):
        segue.attach(pipe, rule)
        try:
            generator = torch.Generator().manual_seed(3)
            return pipe(class_labels=[1, 2], num_inference_steps=4, generator=generator, output_type="np").images
        finally:
            segue.detach(pipe)

    together, alone = pictures(CFG([1.5, 4.0])), [pictures(CFG(scale)) for scale in (1.5, 4.0)]
    assert np.abs(alone[0] - alone[1]).max() > 1e-2
    for i in range(2):
        assert np.abs(together[i] - alone[i][i]).max() < 1e-5


# --- what is refused ---------------------------------------------------------------------------------------------------

OTHER_BATCH = "the rule has numbers for 2 samples, and there are 3"
REFUSED = {
    "sample": (lambda e: e.sample(LABELS, CFG([1.0, 2.0])), OTHER_BATCH),
    "sample, list": (lambda e: e.sample(LABELS, [CFG(1.0), None]), "the list has rules for 2 samples, and there are 3"),
    "load": (lambda e: e.load(e.plan(CFG([1.0, 2.0]), 2), LABELS, SEEDS, torch.zeros(3, 4, 6, 10)), OTHER_BATCH),
    "denoiser": (lambda e: e.denoiser(CFG([1.0, 2.0]), LABELS), OTHER_BATCH),
    "two sizes": (lambda e: CFG([1.0, 2.0]) + SkipLayer([1.0, 2.0, 3.0], (1,)), "numbers for 2 samples and for 3"),
    "two sizes, delta": (lambda e: CFG([1.0, 2.0], delta=[1.0]), "numbers for 1 samples and for 2"),
    "two sizes, correction": (lambda e: APG([0.0, 0.1], 1.0, [0.0, 0.1, 0.2]), "numbers for 2 samples and for 3"),
    "a list in a list": (lambda e: e.plan([CFG([1.0, 2.0])]), "cfg:scale=1,2> with numbers for 2 samples"),
    "an empty list": (lambda e: e.plan([]), r"a list of rules holds one for each sample, got \[\]"),
    "no rule": (lambda e: e.plan([CFG(2.0), 3.0]), "got 3.0"),
    "not finite": (lambda e: CFG([1.0, float("nan")]), "a weight must be finite, got nan"),
    "two corrections": (lambda e: e.plan([CFG(2.0) + Rescale(0.5), CFG(2.0) + CFGZeroStar()]), "corrections of one kind"),
    "without its scale": (lambda e: e.plan([CFG(2.0), CFG(2.0) + CFGZeroStar()]), "another's rule has it uncorrected"),
    "channels": (lambda e: e.plan([CFG(2.0), CFG(2.0, channels=3)]), "guide 4 and 3 channels"),
    "needs a schedule": (lambda e: e.denoiser([None, None, CFG(2.0).reused(2)], LABELS), "needs the schedule"),
    "layers": (lambda e: e.plan([None, SkipLayer(1.0, (9,))]), "layer 9 does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_no_batch_is_refused_before_any_work(flow, monkeypatch, case):
    make, message = REFUSED[case]
    monkeypatch.setattr(EngineCore, "draw_noise", lambda *_: pytest.fail("noise was drawn"))
    monkeypatch.setattr("segue.engine.core.Program", lambda *_: pytest.fail("a program was made"))
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        make(flow)
    assert "\n" not in str(caught.value)


def test_one_number_for_each_is_no_matter_for_loops_that_have_one(pipe):
    from segue import SegmentedGuidance

    with pytest.raises(ValueError, match="a guider has one number for all samples, and the rule has numbers for 2"):
        SegmentedGuidance(CFG([1.0, 2.0]))
    engine = Engine.from_pipe(pipe)
    options = {"max_sequence_length": T5_TOKENS, "numerics": "diffusers", "output": "latent", "steps": 2}
    with pytest.raises(ValueError, match="numerics='diffusers' has one rule for all samples"):
        engine.generate(["leaf", "bee"], guidance=CFG([1.0, 2.0]), **options)


# --- tables ------------------------------------------------------------------------------------------------------------


def tables(program) -> list[tuple[int, ...]]:
    combination = program.combination
    found = (program.call_table, program.time_table, combination.reused.weight_table, combination.correction_table)
    return [tuple(table.rows.shape) for table in found]


def test_samples_share_one_table_unless_their_numbers_differ(flow):
    noise = torch.zeros(3, 4, 6, 10)
    shared, own = (tables(flow.load(flow.plan(rule, 6), LABELS, SEEDS, noise)) for rule in (CFG(2.0), CFG(SCALES)))
    assert {shape[0] for shape in shared} == {1} and {shape[0] for shape in own} == {3}
    assert [shape[1:] for shape in shared] == [shape[1:] for shape in own]


def test_a_sample_whose_run_is_over_is_left_alone_by_the_correction_of_one_that_goes_on(engine):
    """Its table ends before that of the other, whose reference then runs for both."""
    rule = CFG(3.0) + APG(0.3, 2.0, 0.5)
    plan = compile_batch([Request(rule, linear(1)), Request(rule, linear(4))], engine.specs)
    noise = engine.draw_noise(plan, [7, 8])
    program = engine.load(plan, [0, 3], [7, 8], noise)
    for live in plan.live:
        program.step(live)
    alone = engine.sample([0], rule, steps=1, seeds=[7], noise=noise[:1]).latents
    assert torch.allclose(program.x[:1], alone, rtol=1e-4, atol=1e-5)  # a batch of two sums in another order
