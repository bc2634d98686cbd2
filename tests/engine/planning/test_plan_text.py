"""A plan as text: every call stands in one line, runs that take turns share it, numbers are those of a person."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_sit

from segue import CFG, SGG, CFGZeroStar, SkipLayer, Window, compile_plan, linear
from segue.engine.planning.compile import Request, compile_batch
from segue.engine.planning.plan_text import COLUMNS, flops_text, plan_dict, run_cells

SPEC = tiny_sit().spec


def calls_of(text: str) -> list[int]:
    """``1-3``, ``7``, ``2, 5``, ``2-3, 5-6 ... 11-12`` -> the calls, from 0."""
    spans = [tuple(map(int, (piece.split("-") * 2)[:2])) for piece in re.split(r", | \.\.\. ", text)]
    if "..." in text:
        distance = spans[1][0] - spans[0][0]
        spans = [(first, first + spans[0][1] - spans[0][0]) for first in range(spans[0][0], spans[-1][0] + 1, distance)]
    return [call - 1 for first, last in spans for call in range(first, last + 1)]


rules = st.builds(
    lambda strong, weak, first, last, often, seldom: (
        CFG(strong, window=Window.fraction(0.0, first)).reused(often)
        + SkipLayer(weak, (1,), window=Window.fraction(last, 1.0)).reused(seldom)
    ),
    st.sampled_from([1.0, 3.0]),
    st.sampled_from([0.0, 1.5]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 4),
    st.integers(1, 4),
)


@given(rules, st.integers(1, 40), st.sampled_from(["euler", "heun"]))
def test_every_call_stands_in_exactly_one_line_that_tells_its_branches(rule, steps, solver):
    plan = compile_plan(rule, linear(steps), solver, SPEC)
    seen = []
    for cells in run_cells(plan):
        calls = calls_of(cells[0])
        names = cells[-1].split(" | ")
        for call in calls:
            live = [str(plan.branches[branch]) for branch in plan.live[call]]
            reused = [str(plan.branches[k + 1]) for k in np.flatnonzero((plan.weights[call] != 0) & ~plan.evaluated[call])]
            assert [re.sub(r" \(w .*", "", name) for name in names] == live + [f"{name} reused" for name in reused]
        seen += calls
    assert sorted(seen) == list(range(plan.calls))
    assert len(run_cells(plan)) <= len(plan.runs)


@pytest.mark.parametrize(("refresh", "lines"), [(1, 1), (2, 2), (3, 2), (7, 2)])
def test_calls_that_take_turns_share_a_line(refresh, lines):
    plan = compile_plan(CFG(3.0).reused(refresh), linear(42), "euler", SPEC)
    assert len(run_cells(plan)) == lines < max(2, len(plan.runs))


def test_a_single_call_is_one_number():
    plan = compile_plan(SGG(CFG(3.0), SkipLayer(1.0, (1,)), "fraction:0.2"), linear(5), "euler", SPEC)
    assert [cells[:2] for cells in run_cells(plan)] == [("1", "1.0000"), ("2-5", "0.8000-0.2000")]


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (22_956_000_000, "22.96 GFLOP"),
        (999_900_000_000, "999.9 GFLOP"),
        (10**12, "1 TFLOP"),
        (538_123_000_000_000, "538.1 TFLOP"),
        (54 * 10**15, "54 PFLOP"),
    ],
)
def test_operations_are_counted_in_units_that_fit(flops, text):
    assert flops_text(flops) == text


@pytest.mark.parametrize("scale", [1.1, 1.7, 2.3, 4.4])
def test_a_weight_that_only_rounding_keeps_from_zero_is_zero(scale):
    """A linear weight that ends at ``scale - 1 - delta``: the branch is dead there, in the table and on paper."""
    rule = CFG(scale, delta=round(scale - 1, 3))
    plan = compile_plan(rule, linear(7), "euler", SPEC)
    assert plan.weights[-1, 0] == 0 and plan.live[-1] == (0,) and plan.live[-2] == (0, 1)
    assert "e-" not in str(plan)
    assert compile_plan(CFG(1 + 2.0**-40), linear(3), "euler", SPEC).live == ((0, 1),) * 3  # small, but meant


def test_the_rows_of_solvers_that_look_back_unequally_far_have_a_name_for_every_column():
    requests = [Request("cfg:scale=2", linear(8)), Request("cfg:scale=2", linear(4), "unipc(order=3)")]
    record = compile_batch(requests, {"main": SPEC}).to_dict()
    assert {len(row) for row in record["solver_rows"]} == {len(record["solver_columns"])}
    assert record["solver_columns"][-2:] == ["earlier_0", "earlier_1"]


def test_a_plan_is_told_in_words_numbers_and_tables():
    rule = SGG(CFG(3.0), SkipLayer(1.5, (1, 2)), 0.5) + CFGZeroStar(1)
    plan = compile_plan(rule, linear(6), "heun", SPEC)
    assert json.loads(plan.to_json()) == plan.to_dict() == plan_dict(plan)
    assert plan.to_dict()["weights"] == plan.weights.tolist()
    text, page = str(plan), plan._repr_html_()
    for cells in (COLUMNS, *run_cells(plan)):
        assert any(all(cell in line for cell in cells) for line in text.splitlines())
        assert all(f">{cell}</" in page for cell in cells)
    assert "sgg:scale=3,weight=1.5,layers=1,2,switch=0.5 + zero-star:zero_steps=1" in repr(plan) and "\n" not in repr(plan)
    assert f"{plan.cost.relative:.2f}x unguided" in repr(plan)
