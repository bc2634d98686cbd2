"""Models by name, at other widths and sizes; the bundled model with its own weights; rules in each model's numbers."""

import pytest
import torch
from tiny_models import tiny_sit

from segue import CFG, SGG, SkipLayer, Window
from segue.bench import cases
from segue.bench.cases import RULES, BenchModel, NotApplicable, Workload, randomize
from segue.bench.session import Settings
from segue.bench.workloads import CPU_CASES, CUDA_CASES, check_rules, chosen_cases, gate_rules
from segue.models.sit import SiT

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "width", "heads", "tokens"),
    [
        ("sit-xl/2", 1152, 16, 256),
        ("sit-xl/2@576", 576, 8, 256),
        ("sit-xl/2@72:64", 72, 1, 16),
        ("sd3.5-medium", 1536, 24, 4096),
        ("sd3.5-medium:512", 1536, 24, 1024),
        ("sd3-medium@128:256", 128, 2, 256),
    ],
)
def test_a_narrower_model_keeps_depth_and_head_dimension(text, width, heads, tokens):
    model = BenchModel.parse(text)
    spec = model.spec
    assert (spec.dim, spec.heads, spec.tokens(spec.height, spec.width)) == (width, heads, tokens)
    published = BenchModel.parse(model.name).spec
    assert (spec.depth, spec.head_dim) == (published.depth, published.head_dim)
    assert model.text == text


def test_the_size_option_is_part_of_the_name():
    """A case is found again by its name, so everything that changes the work must be in it."""
    assert BenchModel.parse("dit-xl/2", 512).text == "dit-xl/2:512"
    assert BenchModel.parse("dit-xl/2:256", 512).text == "dit-xl/2:256"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("calls", [2, 6, 28])
def test_a_rule_switches_after_half_of_the_calls(rule, calls):
    plan = BenchModel.parse("sit-b/2").plan(rule, calls)
    expected = {
        "none": [()],
        "cfg": [("uncond",)],
        "slg": [("cond skip 7,8,9",)],
        "sgg": [("uncond",), ("cond skip 7,8,9",)],
        "sgg-exit": [("uncond",), ("cond exit 4",)],
    }[rule]
    found = [tuple(str(plan.branches[i]) for i in live[1:]) for live in plan.live]
    assert found == [names for names in expected for _ in range(calls // len(expected))]
    assert not plan.warnings


def test_the_published_recipe_is_the_named_one():
    half = Window.fraction(0.0, 0.5), Window.fraction(0.5, 1.0)
    assert BenchModel.parse("sd3-medium").rule("sgg") == CFG(4.5, window=half[0]) + SkipLayer(3.0, (7, 8, 9), window=half[1])
    assert BenchModel.parse("sd3-medium").rule("cfg:scale=2") == CFG(2.0)


def test_a_model_without_an_exit_cannot_follow_the_exit_rule():
    with pytest.raises(NotApplicable, match="no early-exit head"):
        BenchModel.parse("sd3-medium").rule("sgg-exit")
    check_rules([(BenchModel.parse("sd3-medium"), 1)], RULES, 2)  # which is no reason to refuse the run


def test_random_weights_are_the_same_again_and_nothing_is_zero():
    spec = BenchModel.parse("sit-s/2@64:32").spec
    first, second = (randomize(SiT(spec), 1) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.abs().min() > 0 or a.numel() > 10_000
        assert a.std() > 0 or a.numel() == 1


@pytest.mark.parametrize(("text", "size"), [("sit-s/2@64:48", 3), ("sd3-medium@64:32", 2)])
def test_a_batch_is_drawn_with_every_sample_its_own(text, size):
    workload = Workload.make(BenchModel.parse(text), size, CPU, torch.float32)
    draw = workload.sampler(workload.plan(workload.model.rule("sgg"), 2))
    drawn = draw()
    assert torch.isfinite(drawn).all()
    for i in range(1, size):
        assert (drawn[i] - drawn[0]).abs().max() > 0.1
    assert draw().data_ptr() == drawn.data_ptr()  # in the same program: a draw builds and captures nothing anew


def test_a_reference_that_is_drawn_begins_with_the_label_of_the_sample():
    workload = Workload.make(BenchModel.parse("sit-s/2@64:48"), 3, CPU, torch.float32)
    plan = workload.plan(workload.model.rule("icg:scale=2"), 2)
    conditions = workload.conditions(plan)
    assert len(plan.draws) == 1 and torch.equal(conditions[plan.draws[0]], conditions["cond"])
    assert not torch.equal(workload.sampler(plan)(), workload.sampler(workload.plan(workload.model.rule("none"), 2))())


def test_half_precision_is_judged_against_single():
    """bf16 on the CPU: the engine errs like plain modules do, and far more than the bound for fp32 allows."""
    model = BenchModel.parse("sit-s/2@64:48")
    workload = Workload.make(model, 2, CPU, torch.bfloat16)
    (gate,) = gate_rules(workload, {"sgg": model.rule("sgg")}, 2).values()
    assert gate.passed
    assert 1e-4 < gate.bound < 0.5


# --- the bundled model -----------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(monkeypatch):
    """A stand-in for the checkpoints: a tiny network and a weaker one."""
    pair = (tiny_sit(depth=12, exits=(4,)), {"weak": tiny_sit(3, depth=2, exits=())})
    monkeypatch.setattr(cases, "load_model", lambda name: pair)
    return pair


def test_the_bundled_model_brings_its_weights_its_layers_and_its_weak_network(bundle):
    model = BenchModel.parse("herbarium")
    assert model.fixed
    assert model.layers == (7, 8)
    assert model.build(CPU) is bundle
    assert model.plan("ag:weight=1", 4).branches[1].model == "weak"
    assert model.rule("sgg-exit") != model.rule("sgg")
    assert model.rule("sgg") != SGG(CFG(4.5), SkipLayer(3.0, (7, 8)), 0.5)  # half of the calls, not half of the noise


def test_the_bundled_model_has_one_width(bundle):
    with pytest.raises(ValueError, match="the width of herbarium is that of its weights, got 'herbarium@64'"):
        BenchModel.parse("herbarium@64")


def test_a_missing_bundle_is_said_and_the_other_models_remain(monkeypatch, make_session):
    def missing(_name):
        raise FileNotFoundError("the bundled checkpoint is missing")

    monkeypatch.setattr(cases, "load_model", missing)
    session = make_session(None)
    assert {model.text for model, _ in chosen_cases(session)} == {text for text, _ in CPU_CASES if text != "herbarium"}
    assert session.lines == ["herbarium: not run, the bundled checkpoint is missing"]
    with pytest.raises(FileNotFoundError):
        chosen_cases(make_session(None, models=("herbarium",)))


def test_chosen_models_meet_every_chosen_batch_small_ones_first(make_session):
    """SiT-B has four times the width products of SiT-S: two samples of it cost as much as eight."""
    session = make_session(None, models=("sit-b/2", "sit-s/2"), batches=(8, 2))
    pairs = [(model.text, batch) for model, batch in chosen_cases(session)]
    assert pairs == [("sit-s/2", 2), ("sit-b/2", 2), ("sit-s/2", 8), ("sit-b/2", 8)]


def test_a_chosen_model_has_its_usual_batch(bundle, make_session):
    assert [batch for _, batch in chosen_cases(make_session(None, models=("herbarium", "sit-s/2")))] == [24, 1]


def test_every_default_case_exists(bundle):
    for text, _ in (*CPU_CASES, *CUDA_CASES):
        assert BenchModel.parse(text).plan("sgg", 2).cost.relative > 1.4


def test_calls_are_few_on_the_cpu_unless_chosen():
    assert Settings(device="cpu").calls == 2
    assert Settings(device="cpu", steps=28).calls == 28
