"""NAG as a rule: its numbers, its text, what it adds to, what a plan says of it, and what it refuses."""

import pytest

from segue import CFG, NAG, SGG, Rescale, SkipLayer, Window, flow_shift, parse_rule
from segue.engine.planning.compile import compile_plan
from segue.engine.rules.batch import plain_rules
from segue.engine.rules.branch import NEGATIVE_TEXT
from segue.engine.rules.guidance import Term, Weight
from segue.engine.rules.rule_text import rule_text
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.sd3_sizes import SD3_SIZES
from segue.models.spec import SiTSpec

SPEC = MMDiTSpec(name="tiny", channels=4, height=8, width=8, patch=2, dim=24, depth=6, heads=3)
RULES = [
    NAG(5.0),
    NAG(4.0, tau=3.0, alpha=0.25, window="sigma:0.2,0.9"),
    NAG([4.0, 1.0], alpha=[0.1, 0.5]),
    CFG(3.0) + NAG(2.0, window=Window.steps(1, 2)) + NAG(6.0, window=Window.steps(3, 4)),
    SkipLayer(1.5, (2, 3)) + NAG(5.0, window=Window.fraction(0, 0.5)) + Rescale(0.3),
    SGG(CFG(2.0) + NAG(5.0), SkipLayer(1.0, (2,)), 0.6),
]


@pytest.mark.parametrize("rule", RULES, ids=rule_text)
def test_the_text_of_a_rule_makes_it_again(rule):
    assert parse_rule(rule_text(rule)).guidance == rule


def test_the_name_alone_has_a_number_for_published_models():
    for name in SD3_SIZES:
        assert parse_rule("nag", name).guidance == NAG(5.0)
    assert parse_rule("nag:scale=3,alpha=0.25", "sd3.5-medium").text == "nag:scale=3,alpha=0.25"


def plan(rule, steps: int = 4, spec=SPEC):
    return compile_plan(rule, flow_shift(steps), "euler", spec)


def test_a_plan_runs_the_text_where_nag_acts():
    made = plan(CFG(3.0, window=Window.steps(2, 3)) + NAG(5.0, alpha=0.25, window=Window.steps(1, 2)))
    assert [str(branch) for branch in made.branches] == ["cond", "uncond", "uncond text"]
    assert made.live == ((0, 2), (0, 1, 2), (0, 1), (0,))
    assert made.attention.tolist() == [[5.0, 2.5, 0.25]] * 2 + [[1.0, 1.0, 0.0]] * 2
    assert [made.layout(live).texts for live in made.live] == [(2,), (2, 1), (1, 1), (1,)]
    assert "cond | uncond text (nag scale 5, tau 2.5, alpha 0.25)" in str(made)
    assert "6 evaluations, 36 blocks, 12 blocks of a text alone" in str(made)
    assert made.to_dict()["attention"] == made.attention.tolist()


def test_weak_copies_share_the_prefix_and_fork_with_their_texts():
    made = plan(NAG(5.0) + SkipLayer(1.0, (3,)))
    layers = made.layout((0, 1, 2)).layers
    assert [layer.active for layer in layers] == [layer.joined for layer in layers] == [1, 1, 1, 1, 2, 2]


def test_a_rule_that_never_acts_has_no_text():
    for rule in (NAG(1.0), NAG(5.0, alpha=0.0), NAG(5.0, window=Window.sigma(1, 1))):
        assert plan(rule).conditions == ("cond",)


def test_a_segment_confines_it():
    first, second = Window.sigma(0.6, 1.0), Window.sigma(0.0, 0.6)
    rule = SGG(CFG(2.0) + NAG(5.0), SkipLayer(1.0, (2,)) + NAG(3.0), 0.6)
    assert [part.window for part in rule.attention] == [first, second]
    with pytest.raises(ValueError, match="NAG already has the window"):
        NAG(5.0, window=second).within(Window.sigma(0.1, 0.2))


def test_rules_of_the_samples_of_a_batch():
    made = plan([NAG(5.0), CFG(2.0), NAG(3.0, window=Window.steps(1, 2))])
    assert made.attention.shape == (3, 4, 3)
    assert made.attention[:, 3, 0].tolist() == [5.0, 1.0, 1.0]
    assert made.live == ((0, 1, 2),) * 4
    assert [rule.attention[0].scale for rule in plain_rules(NAG([2.0, 4.0]))] == [2.0, 4.0]
    with pytest.raises(ValueError, match="numbers for 2 samples and for 3"):
        NAG([2.0, 4.0], alpha=[0.1, 0.2, 0.3])


def test_oddities_are_told():
    assert "selects none of 4 steps" in plan(NAG(5.0, window="sigma:0.01,0.02")).warnings[0]
    assert "reaches past the last step, 4" in str(plan(NAG(5.0, window=Window.steps(1, 9))).warnings)
    assert plan(NAG(5.0) + Rescale(0.5)).warnings == plan(Rescale(0.5)).warnings
    assert not plan(NAG(5.0) + CFG(2.0, window=Window.steps(1, 2))).warnings


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: NAG(0.5), "scale of NAG must be a finite number of at least 1, got 0.5"),
        (lambda: NAG(float("inf")), "scale of NAG must be a finite number of at least 1, got inf"),
        (lambda: NAG(5.0, tau=0.9), "tau of NAG must be a finite number of at least 1, got 0.9"),
        (lambda: NAG(5.0, alpha=1.5), "alpha of NAG must be between 0 and 1, got 1.5"),
        (lambda: NAG([5.0, -1.0]), "scale of NAG must be a finite number of at least 1, got -1"),
        (lambda: plan(NAG(5.0) + NAG(3.0)), "two NAG of one rule act in the same 4 steps"),
        (lambda: parse_rule("nag:scale=3,weight=2"), "nag has no option 'weight'; it has: scale, tau, alpha, window"),
        (lambda: parse_rule("nag"), "nag needs scale"),
        (lambda: Term(NEGATIVE_TEXT, Weight(1.0)), "uncond text of a term has no output to guide by"),
        (
            lambda: plan(NAG(5.0), spec=SiTSpec("leaf", 4, 8, 8, 2, 24, 4, 3, "velocity", "sigma")),
            "NAG guides by a negative prompt inside the attention to text, and leaf takes class labels",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_number_is_refused():
    for make in (lambda: NAG("5"), lambda: NAG(5.0, alpha=None), lambda: NAG(5.0, sigma=1)):
        with pytest.raises(TypeError):
            make()
