"""Labels that are drawn in the step: against loops over samples in fp64, by their limits, and by what the plan counts."""

import copy
import math

import numpy as np
import pytest
import torch
from counted_rows import counted_rows
from naive_corrections import Sample, corrected
from naive_draws import NaiveDraws, waving_classifier
from step_trace import OnDevice, check_step
from tiny_models import tiny_sit

from segue import APG, CFG, GFCG, ICG, SGG, AutoGuidance, CFGZeroStar, Engine, Guidance, Rescale, SkipLayer, Window
from segue.engine.core import resolve_plan
from segue.engine.running.draws import chosen_reference, other_classes
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey

LABELS, SEEDS, STEPS = [0, 4, 2], [7, 8, 9], 4
# fp32 against fp64: outputs agree to 1e-6, the logits of a steep classifier and a gain make some twenty times that of it
ERROR = 1e-4
KINDS = {
    "flow": {},
    "dit": {"prediction": "epsilon", "time": "discrete", "out_channels": 8, "frequency_shift": 1.0, "parents": ()},
}


CLASSIFIER = waving_classifier()


@pytest.fixture(scope="module")
def pairs():
    """Engines with a weak network, and copies in fp64."""
    made = {}
    for name, changes in KINDS.items():
        main, weak = tiny_sit(0, depth=3, **changes), tiny_sit(9, **(changes | {"depth": 1, "exits": ()}))
        engine = Engine(main, {"weak": weak}, device="cpu")
        made[name] = engine, {name: copy.deepcopy(network).double() for name, network in engine.models.items()}
    return made


@pytest.fixture(params=KINDS)
def pair(request, pairs):
    return pairs[request.param]


@pytest.fixture
def flow(pairs):
    return pairs["flow"]


@pytest.fixture
def engine(flow):
    return flow[0]


def drawn_noise(engine, batch=3):
    spec = engine.spec
    return torch.randn(batch, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(2))


def split(rule: Guidance) -> tuple[Guidance, tuple]:
    """The plain terms of a rule, and those that draw."""
    drawn = tuple(term for term in rule.terms if not isinstance(term.branch.condition, str | int))
    return Guidance(tuple(term for term in rule.terms if term not in drawn), rule.corrections), drawn


def check_naive(pair, rule, solver="euler", steps=STEPS):
    engine, doubles = pair
    plan, noise = engine.plan(rule, steps=steps, solver=solver), drawn_noise(engine)
    rest, drawn = split(rule)
    others = [other_classes(seed, plan.calls, own, 6)[plan.steps].tolist() for seed, own in zip(SEEDS, LABELS, strict=True)]
    naive = NaiveDraws(
        doubles, rest, torch.tensor(LABELS), list(plan.schedule.sigmas), drawn, CLASSIFIER, tuple(plan.steps.tolist()), others
    )
    expected = naive.run(solver, noise)
    found = engine.sample(LABELS, rule, steps=steps, solver=solver, seeds=SEEDS, noise=noise).latents
    assert (found - expected).abs().max() < ERROR * expected.abs().max()
    assert naive.largest > 0.1  # the drawn terms say something
    return naive


FORMS = {
    "rival": {"form": "rival"},
    "cfg-swap": {"form": "cfg-swap"},
    "ag-swap": {"form": "ag-swap"},
    "ag-swap, gain": {"form": "ag-swap", "gain": 1.5},
}


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_with_both_lags_is_a_loop_over_samples(pair, form, lag):
    check_naive(pair, GFCG(0.8, classifier=CLASSIFIER, lag=lag, **FORMS[form]))


def test_the_reference_changes_on_the_way(flow):
    naive = check_naive(flow, GFCG(0.8, classifier=CLASSIFIER, form="cfg-swap", lag=0), steps=7)
    assert len(set(map(tuple, naive.labels_used))) > 1


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("source", ["weak", "uncond"])
def test_the_estimate_may_be_that_of_another_branch(flow, source, lag):
    check_naive(flow, GFCG(0.8, classifier=CLASSIFIER, lag=lag, source=source, form="cfg-swap"))


OPTIONS = {
    "every": {"every": 3},
    "interval": {"interval": Window.sigma(0.3, 0.9)},
    "steps": {"interval": Window.steps(2, 6), "every": 2, "window": Window.fraction(0.0, 0.9)},
    "temperature": {"temperature": 4.0},
    "delta": {"delta": 0.4, "window": Window.sigma(0.1, 0.8)},
}


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("option", OPTIONS)
def test_how_often_where_and_how_sharply_it_is_asked(flow, option, lag):
    form = ("rival", "ag-swap")[(list(OPTIONS).index(option) + lag) % 2]
    check_naive(flow, GFCG(0.8, classifier=CLASSIFIER, lag=lag, form=form, **OPTIONS[option]), steps=7)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_for_every_form_and_network(pair, form, option, lag):
    check_naive(pair, GFCG(0.8, classifier=CLASSIFIER, lag=lag, **FORMS[form], **OPTIONS[option]), steps=8)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_two_calls_of_a_heun_step_are_calls(flow, lag):
    check_naive(flow, GFCG(0.8, classifier=CLASSIFIER, lag=lag, every=2), solver="heun", steps=4)


def test_several_drawn_terms_add_to_others(pair):
    rival = GFCG(0.6, classifier=CLASSIFIER)
    weak = GFCG(0.5, classifier=CLASSIFIER, form="ag-swap", gain=1.0, lag=0, source="weak")
    check_naive(pair, rival + weak + ICG(1.4) + CFG(1.5, window=Window.sigma(0.4, 1.0)) + SkipLayer(0.5, (1,)))


def test_a_drawn_reference_has_its_segment(flow):
    check_naive(flow, SGG(GFCG(0.9, classifier=CLASSIFIER), AutoGuidance(0.7), 0.5), steps=6)
    check_naive(flow, SGG(ICG(2.0), GFCG(0.9, classifier=CLASSIFIER, form="ag-swap"), 0.5), steps=6)


def test_a_random_reference_guides_some_channels(pair):
    check_naive(pair, ICG(2.5, channels=2))


# --- limits ------------------------------------------------------------------------------------------------------------


def sure_of(labels):
    return lambda clean: 1e4 * torch.nn.functional.one_hot(torch.tensor(labels), 6).to(clean)[: len(clean)]


SURE = sure_of(LABELS)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_classifier_that_is_sure_of_the_class_leaves_the_plain_rule(engine, lag):
    def sample(rule):
        return engine.sample(LABELS, rule, steps=4, seeds=SEEDS).latents

    for form, plain in (("rival", None), ("cfg-swap", CFG(1.7)), ("ag-swap", AutoGuidance(0.7))):
        gain = {"gain": 2.0} if form == "ag-swap" else {}
        found = sample(GFCG(0.7, classifier=SURE, form=form, lag=lag, **gain))
        torch.testing.assert_close(found, sample(plain), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "rule",
    [
        *(GFCG(0.0, classifier=SURE, form=form, lag=lag) for form in ("rival", "cfg-swap", "ag-swap") for lag in (0, 1)),
        ICG(1.0),
    ],
)
def test_a_weight_of_nothing_is_unguided_to_the_bit(engine, rule):
    plain = engine.sample(LABELS, steps=4, seeds=SEEDS).latents
    assert torch.equal(engine.sample(LABELS, rule, steps=4, seeds=SEEDS).latents, plain)


def test_the_choice_by_hand():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    own, plain, one = torch.tensor([0, 0, 1]), torch.tensor([9, 9, 9]), torch.tensor(1.0)
    shares = logits.softmax(1)
    rival, factor = chosen_reference(logits, own, plain, False, 0 * one, one)
    assert rival.tolist() == [1, 2, 0]
    torch.testing.assert_close(factor, 1 - shares[torch.arange(3), own])
    label, factor = chosen_reference(logits, own, plain, True, 2 * one, one)
    assert label.tolist() == [1, 9, 9]  # a tie is no swap
    torch.testing.assert_close(factor, torch.tensor([1 + 2 * (1 - float(shares[0, 0])), 1.0, 1.0]))
    assert chosen_reference(torch.tensor([[80.0, 0.0, 0.0]]), own[:1], plain[:1], False, one, one)[1] > 0  # not rounded away


def test_coefficients_of_a_plain_reference_are_those_of_the_table_to_the_bit(engine):
    rule = GFCG(0.7, classifier=SURE, form="cfg-swap") + GFCG(0.3, classifier=SURE)
    program = engine.load(engine.plan(rule, steps=4), LABELS, SEEDS, drawn_noise(engine))
    for call in range(4):
        table = program.looked_up()[1]
        weighed = program.begin_draws(table)
        swap, rival = (program.plan.branches.index(term.branch) for term in rule.terms)
        assert (weighed[:, rival] == 0).all()
        assert torch.equal(weighed[:, swap], table[:, swap]) and torch.allclose(weighed[:, swap], torch.tensor(-0.7))
        assert (weighed.sum(1) == 1).all() if call else torch.equal(weighed, table)
        program.step(program.plan.live[call])


def test_coefficients_of_a_swap_are_raised_by_the_gain(engine):
    """By a classifier that is sure of other classes; at the first call nothing is chosen."""
    rule = GFCG(0.7, classifier=sure_of([1, 2, 3]), form="ag-swap", gain=2.0)
    program = engine.load(engine.plan(rule, steps=3), LABELS, SEEDS, drawn_noise(engine))
    swap = program.plan.branches.index(rule.terms[0].branch)
    for call in range(3):
        weighed, weight = program.begin_draws(program.looked_up()[1]), 0.7 * (3 if call else 1)
        assert torch.allclose(weighed[:, swap], torch.tensor(-weight))
        assert torch.allclose(weighed[:, 0], torch.tensor(1 + weight))
        program.step(program.plan.live[call])


def test_random_labels_are_every_other_class_alike_and_follow_the_seed():
    drawn = other_classes(2**63 + 5, 4000, 2, 6)
    assert np.array_equal(drawn, other_classes(2**63 + 5, 4000, 2, 6))
    counts = np.bincount(drawn, minlength=6)
    assert counts[2] == 0
    assert (abs(counts[[0, 1, 3, 4, 5]] - 800) < 4 * 25.3).all()  # four deviations of a binomial share
    assert not np.array_equal(drawn[:50], other_classes(2**63 + 6, 50, 2, 6))


def test_a_sample_does_not_depend_on_its_batch(engine):
    rule = GFCG(0.8, classifier=CLASSIFIER, form="cfg-swap") + ICG(1.5)
    whole = engine.sample(LABELS, rule, steps=4, seeds=SEEDS).latents
    split_up = engine.sample(LABELS, rule, steps=4, seeds=SEEDS, max_batch=2).latents
    torch.testing.assert_close(whole, split_up, rtol=0, atol=2e-5)


def test_samples_may_have_rules_of_their_own(engine):
    rules = [GFCG(0.8, classifier=CLASSIFIER), GFCG(0.5, classifier=CLASSIFIER, form="ag-swap", every=2), CFG(2.0)]
    whole = engine.sample(LABELS, rules, steps=4, seeds=SEEDS).latents
    for i, rule in enumerate(rules):
        alone = engine.sample(LABELS[i : i + 1], rule, steps=4, seeds=SEEDS[i : i + 1]).latents
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=2e-5)
    numbers = engine.sample(LABELS, GFCG([0.8, 0.0, 1.2], classifier=CLASSIFIER), steps=4, seeds=SEEDS).latents
    torch.testing.assert_close(numbers[0], whole[0], rtol=0, atol=2e-5)


# --- work --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_plan_counts_what_runs(engine, solver, lag):
    asked = []

    def counting(clean):
        if len(clean) == 3 and type(clean) is torch.Tensor:
            asked.append(1)
        return CLASSIFIER(clean)

    rule = GFCG(0.8, classifier=counting, lag=lag, every=2, source="weak") + GFCG(
        0.4, classifier=counting, form="ag-swap", lag=lag, window=Window.sigma(0.3, 1.0)
    )
    plan = engine.plan(rule, steps=6, solver=solver)
    choosers = sum(len(plan.choosers(live)) for live in plan.live)
    asked.clear()
    with counted_rows() as rows:
        engine.sample(LABELS, rule, steps=6, solver=solver, seeds=SEEDS)
    assert len(asked) == choosers
    assert sum(rows) == 3 * plan.cost.blocks
    flops = 2 * 240 * 6
    assert plan.classifier_flops == dict.fromkeys(plan.classifier_flops, flops)
    silent = engine.plan(GFCG(0.8, classifier=lambda clean: CLASSIFIER(clean) if clean.sum() else None), steps=6)
    assert "operations unknown and not counted" in str(silent)
    assert f"{flops / 1e9:.4g} GFLOP each time" in str(plan)


def test_one_forward_a_call_by_default_and_no_row_more_than_autoguidance(engine):
    swap, plain = (
        engine.plan(rule, steps=8).cost for rule in (GFCG(0.8, classifier=CLASSIFIER, form="ag-swap"), AutoGuidance(0.8))
    )
    assert (swap.evaluations, swap.blocks) == (plain.evaluations, plain.blocks)
    rival = engine.plan(GFCG(0.8, classifier=CLASSIFIER), steps=8)
    assert rival.cost.evaluations == 15  # nothing is chosen at the first call, so nothing is compared with


def first_values(clean):  # without a tensor of its own, so on any device
    return 5 * clean.flatten(1)[:, :6]


RULES = {
    "lag 1": GFCG(0.8, classifier=first_values, source="weak", every=2) + ICG(2.0),
    "lag 0": GFCG(0.8, classifier=first_values, form="cfg-swap", lag=0) + SkipLayer(0.5, (1,)),
    "both": GFCG(0.8, classifier=first_values, form="ag-swap", gain=1.0)
    + GFCG(0.4, classifier=first_values, lag=0)
    + ICG(1.5)
    + Rescale(0.5),
}


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("lag 0", "dit"),
        ("both", "flow"),
        *(pytest.param(*slow, marks=pytest.mark.slow) for slow in (("lag 1", "flow"), ("lag 0", "flow"), ("both", "dit"))),
    ],
)
def test_a_step_could_be_captured(pairs, rule, kind):
    engine, rule = pairs[kind][0], RULES[rule]
    program = engine.load(engine.plan(rule, steps=6, solver="euler-maruyama"), LABELS, SEEDS, drawn_noise(engine))
    for live in program.plan.live_sets:
        assert len(check_step(program, live).operations) > 50
    meta = torch.device("meta")
    models = {name: copy.deepcopy(network).to(meta) for name, network in engine.models.items()}
    plan = resolve_plan(engine.specs, rule, 6)
    program = Program(ProgramKey.of(plan, 2), plan, models, meta)
    program._slots = [None] * len(plan.branches)
    for live in plan.live_sets:
        with OnDevice(meta):
            program.step(live)


def test_other_numbers_run_in_the_same_program(engine):
    def drawn(gain, temperature, every):
        return GFCG(0.5, classifier=CLASSIFIER, form="ag-swap", gain=gain, temperature=temperature, every=every)

    other = Engine(engine.models["main"], {"weak": engine.models["weak"]}, device="cpu")
    rules = [drawn(0.0, 1.0, 1), drawn(2.0, 3.0, 2)]
    found = [other.sample(LABELS, rule, steps=4, seeds=SEEDS).latents for rule in rules]
    assert str(other.explain()).count("program:") == 1
    fresh = [Engine(engine.models["main"], {"weak": engine.models["weak"]}, device="cpu") for _ in rules]
    for made, rule, latents in zip(fresh, rules, found, strict=True):
        assert torch.equal(made.sample(LABELS, rule, steps=4, seeds=SEEDS).latents, latents)


# --- loops that are not ours -------------------------------------------------------------------------------------------

LEVELS = (1.0, 0.8, 0.6, 0.35, 0.1, 0.0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_denoiser_of_known_levels_is_the_same_run(engine, rule):
    noise = drawn_noise(engine)
    denoiser, x = engine.denoiser(rule, LABELS, schedule=LEVELS), noise
    seeds = [0, 1, 2]  # a denoiser draws by the place in the batch
    wanted = engine.sample(LABELS, rule, schedule=LEVELS, seeds=seeds, noise=noise).latents
    for _ in range(2):  # the second run starts anew
        x = noise
        for level, following in zip(LEVELS, LEVELS[1:], strict=False):
            x = x + (following - level) * denoiser.velocity(x, torch.full((3,), level))
        torch.testing.assert_close(x, wanted, rtol=0, atol=5e-5)


def test_levels_as_they_come_have_no_call_before(engine):
    for rule, what in ((GFCG(1.0, classifier=CLASSIFIER), "the call before"), (ICG(2.0), "drawn anew at every step")):
        with pytest.raises(ValueError, match=f"{what}.*needs the schedule"):
            engine.denoiser(rule, LABELS)
    rule = GFCG(1.0, classifier=CLASSIFIER, lag=0)
    free, known = engine.denoiser(rule, LABELS), engine.denoiser(rule, LABELS, schedule=LEVELS)
    x = drawn_noise(engine)
    torch.testing.assert_close(free(x, 0.6), known(x, 0.6), rtol=0, atol=2e-5)


def test_a_gradient_is_of_what_was_chosen_before(engine):
    rule = GFCG(1.0, classifier=CLASSIFIER)
    denoiser, x = engine.denoiser(rule, LABELS, schedule=LEVELS), drawn_noise(engine)
    plain, _ = denoiser.velocity(x, torch.full((3,), 1.0)), denoiser.velocity(x, torch.full((3,), 1.0))
    fixed = denoiser.velocity(x, torch.full((3,), 0.8))
    denoiser = engine.denoiser(rule, LABELS, schedule=LEVELS)
    recorded = x.clone().requires_grad_()
    torch.testing.assert_close(denoiser.velocity(recorded, torch.full((3,), 1.0)), plain, rtol=0, atol=2e-5)
    guided = denoiser.velocity(recorded, torch.full((3,), 0.8))
    torch.testing.assert_close(guided, fixed, rtol=0, atol=2e-5)
    (gradient,) = torch.autograd.grad(guided.sum(), recorded)
    assert gradient.abs().max() > 0
    at_once = engine.denoiser(GFCG(1.0, classifier=CLASSIFIER, lag=0), LABELS, schedule=LEVELS)
    with pytest.raises(ValueError, match=r"\(lag=0\) has no gradient"):
        at_once.velocity(recorded, torch.full((3,), 0.8))


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (GFCG(1.0, classifier=waving_classifier(classes=7)), "tells 7 classes apart, and tiny has 6"),
        (GFCG(1.0, classifier=lambda clean: clean.mean()), "must give logits .* got shape"),
        (GFCG(1.0, classifier=lambda clean: "oak"), "must give logits .* got str"),
        (GFCG(1.0, classifier="herbarium-classifier"), "tells 48 classes apart, and"),
        (GFCG(1.0, classifier="oaks"), "unknown classifier 'oaks'; accepted: herbarium-classifier"),
        (GFCG(1.0, classifier=CLASSIFIER, form="ag-swap", model="none"), "no network named 'none'"),
        (GFCG(1.0, classifier=CLASSIFIER, source="weak", model="none"), "no network named 'none'"),
        (GFCG(1.0, classifier=CLASSIFIER).reused(2), "changes from call to call: its direction is not reused"),
        (CFG(2.0).reused(2) + GFCG(1.0, classifier=CLASSIFIER, source="uncond"), "looks at the uncond branch, which a term"),
        (
            CFG(2.0).adaptive(0.9) + GFCG(1.0, classifier=CLASSIFIER, source="uncond"),
            "looks at the uncond branch, which a term",
        ),
        (GFCG(1.0, classifier=CLASSIFIER) + APG(0.0, 1.0, 0.5), "is its classifier's"),
        (GFCG(1.0, classifier=CLASSIFIER) + CFGZeroStar(), "is its classifier's"),
        (GFCG(1.0, classifier=CLASSIFIER, classes=("oak", "elm")), "has labels of its own"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(engine, rule, words):
    with pytest.raises(ValueError, match=words), counted_rows() as rows:
        engine.sample(LABELS, rule, steps=4, seeds=SEEDS)
    assert not rows


def test_a_reference_that_changes_does_not_stop(engine):
    with pytest.raises(ValueError, match="compares a condition from call to call, and that of random label changes"):
        (CFG(2.0) + ICG(2.0)).adaptive(0.9)
    beside = GFCG(1.0, classifier=CLASSIFIER, form="ag-swap", lag=0)
    stopping, once = CFG(2.0).adaptive(-0.999) + beside, CFG(2.0, window=Window.steps(1, 1)) + beside
    found, expected = (engine.sample(LABELS, rule, steps=4, seeds=SEEDS).latents for rule in (stopping, once))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


CORRECTED = {  # drawn terms of weight 1
    "apg": (ICG(2.0), APG(-0.5, 1.0, 0.5)),
    "zero-star": (ICG(2.0), CFGZeroStar(1)),
    "rescale": (GFCG(1.0, classifier=CLASSIFIER), Rescale(0.5)),
}


@pytest.mark.parametrize("name", CORRECTED)
def test_corrections_that_suit_a_drawn_reference(engine, name):
    """Along the way of the corrected run: what the term alone adds there, corrected sample by sample in fp64."""
    rule, correction = CORRECTED[name]
    noise = drawn_noise(engine)
    found = engine.sample(LABELS, rule + correction, schedule=LEVELS, seeds=[0, 1, 2], noise=noise).latents
    plain, drawn = (engine.denoiser(own, LABELS, schedule=LEVELS) for own in (None, rule))
    x, memories, steps = noise, [[{}] for _ in LABELS], len(LEVELS) - 1
    for step, (level, following) in enumerate(zip(LEVELS, LEVELS[1:], strict=False)):
        c, guided = (denoiser.velocity(x, torch.full((3,), level)).double() for denoiser in (plain, drawn))
        velocity = torch.zeros_like(c)
        for i, y in enumerate(x.double()):
            place = level, following, step, steps, lambda output, y=y, level=level: y - level * output
            sample = Sample(c[i], guided[i] - c[i], 1.0, y, *place)
            velocity[i] = corrected(sample, torch.zeros_like(y), correction.corrections, True, memories[i])
        x = x + (following - level) * velocity.float() * (step >= correction.zero_steps)
    torch.testing.assert_close(found, x, rtol=0, atol=5e-5)
    uncorrected = engine.sample(LABELS, rule, schedule=LEVELS, seeds=[0, 1, 2], noise=noise).latents
    assert (found - uncorrected).abs().max() > 1e-2


def test_a_correction_that_changes_nothing_leaves_a_drawn_reference(engine):
    found, plain = (
        engine.sample(LABELS, own, steps=4, seeds=SEEDS).latents for own in (ICG(2.0) + APG(0.0, math.inf, 1.0), ICG(2.0))
    )
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-5)


def test_a_correction_takes_the_reference_that_is_not_drawn(engine):
    weak = GFCG(0.5, classifier=CLASSIFIER, form="ag-swap") + CFG(2.0) + APG(0.0, 1.0, 0.5)
    assert engine.plan(weak, steps=4).branches[engine.plan(weak, steps=4).reference].condition == "uncond"
