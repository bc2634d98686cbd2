"""Segments of a run: the switch of segmented guidance as a level, a window or text, from one end of the run to the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_sit

from segue import CFG, SGG, CFGZeroStar, Rescale, SkipLayer, Unguided, Window, compile_plan, flow_shift, parse_rule

STRONG, WEAK = CFG(3.0), SkipLayer(2.0, (1, 2))
SPEC = tiny_sit().spec


def weights(rule, steps=9):
    """The weights of the two branches, uncond and skipped, whichever of them the rule has."""
    plan = compile_plan(rule, flow_shift(steps), "euler", SPEC)
    found = {str(branch): column for branch, column in zip(plan.branches[1:], plan.weights.T, strict=True)}
    return np.stack([found.get(name, np.zeros(steps)) for name in ("uncond", "cond skip 1,2")], axis=1)


@given(st.integers(1, 60), st.floats(0, 1))
def test_a_switch_by_fraction_counts_steps(steps, part):
    expected = np.array([(2.0, 0.0) if i < round(part * steps, 9) else (0.0, 2.0) for i in range(steps)])
    for switch in (Window.fraction(0.0, part), f"fraction:{part!r}", f"fraction:0,{part!r}"):
        assert np.array_equal(weights(SGG(STRONG, WEAK, switch), steps), expected)


@given(st.integers(1, 60), st.floats(0, 1))
def test_a_switch_by_level_is_the_first_segment_in_sigma(steps, level):
    levels = flow_shift(steps).array()[:-1]
    expected = np.array([(2.0, 0.0) if sigma > level else (0.0, 2.0) for sigma in levels])
    for switch in (level, Window.sigma(level, 1.0), repr(level)):
        assert np.array_equal(weights(SGG(STRONG, WEAK, switch), steps), expected)


@pytest.mark.parametrize(("all_strong", "all_weak"), [(0, 1), (0.0, np.float32(1)), ("fraction:1", "fraction:0"), ("0", "1")])
def test_at_the_ends_one_rule_is_everywhere_and_nothing_is_said(all_strong, all_weak):
    for switch, whole in ((all_strong, STRONG), (all_weak, WEAK)):
        rule = SGG(STRONG, WEAK, switch)
        assert np.array_equal(weights(rule), weights(whole))
        assert len(rule.terms) == 1
        assert compile_plan(rule, flow_shift(9), "euler", SPEC).warnings == ()


def test_a_correction_of_the_whole_outlives_its_half_and_one_of_a_term_does_not():
    assert SGG(STRONG + Rescale(0.7), WEAK, 1).corrections == Rescale(0.7).corrections
    assert SGG(STRONG + CFGZeroStar(2), WEAK, 1).corrections == ()
    assert SGG(STRONG + CFGZeroStar(2), WEAK, 0).corrections == CFGZeroStar(2).corrections


def test_an_empty_window_at_an_end_is_a_rule_that_is_off():
    for window in (Window.fraction(0, 0), Window.fraction(1, 1), Window.sigma(0, 0), Window.sigma(1, 1)):
        assert np.array_equal(weights(CFG(3.0, window=window)), weights(Unguided()))
        assert not window.select(flow_shift(9).array()).any()
    for window in (Window.fraction(0.5, 0.5 + 1e-12), Window.sigma(0.5, 0.5 + 1e-12)):
        assert not window.is_empty


@given(st.sampled_from(["0", "1", "0.25", "fraction:0", "fraction:1", "fraction:0.5"]))
def test_the_text_of_a_segmented_rule_holds_its_switch(switch):
    rule = parse_rule(f"sgg:scale=3,weight=2,layers=1,2,switch={switch}")
    assert rule.guidance == SGG(STRONG, WEAK, switch)
    assert parse_rule(rule.text).guidance == rule.guidance


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("steps:1-14", Window.steps(1, 14)),
        ("fraction:0,0.5", Window.fraction(0.0, 0.5)),
        ("sigma:0.2-0.8", Window.sigma(0.2, 0.8)),
        ("all", Window()),
    ],
)
def test_a_window_as_text_is_the_window(text, window):
    assert CFG(3.0, window=text) == CFG(3.0, window=window) == CFG(3.0).within(text)
