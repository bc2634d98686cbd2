"""The cost model prints the table of the specification, and its rooflines follow from counting."""

import pytest
import torch

from segue.bench.cases import BenchModel
from segue.bench.ceilings import Ceilings
from segue.bench.cost_model import (
    TABLE,
    attention_flops,
    block_parameters,
    cost_line,
    cost_table,
    roofline_seconds,
    roofline_table,
    sgg_plan,
)
from segue.bench.timing import Statistic
from segue.engine.planning.compile import compile_plan
from segue.models.sizes import sit_spec

# model: TFLOP of a forward, attention share, weak suffix, SGG 14 + 14 steps exact, as published, gain; the figures of the
# specification, derived by hand from the layers' sizes
SPECIFIED = {
    "sd3-medium": ("8.904", "32 %", "0.582", "1.791x", "2.437x", "1.36"),
    "sd3.5-medium": ("11.250", "38 %", "0.509", "1.755x", "2.426x", "1.38"),
    "sd3.5-large": ("31.121", "23 %", "0.736", "1.868x", "2.460x", "1.32"),
    "dit-xl/2:256": ("0.2372", "3.6 %", "0.643", "1.821x", "2.446x", "1.34"),
    "dit-xl/2:512": ("1.0491", "13 %", "0.643", "1.821x", "2.446x", "1.34"),
}


def ceilings(copy: float, product: float) -> Ceilings:
    return Ceilings(Statistic(copy, copy, copy, 1), {"bfloat16": Statistic(product, product, product, 1)})


def test_the_table_is_that_of_the_specification_to_three_digits():
    printed = [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in cost_table().splitlines()[2:]]
    assert {cells[0]: cells[1:] for cells in printed[:-1]} == SPECIFIED
    assert printed[-1] == ("sit-xl/2, early-exit head", "", "", "0.000", "1.500x")
    assert tuple(SPECIFIED) == TABLE


def test_an_early_exit_head_costs_half_a_forward_less():
    """CFG on half of the calls and no rows for the head: 1.50, as specified."""
    model = BenchModel.parse("sit-xl/2")
    schedule = sgg_plan(model.spec).schedule
    assert f"{compile_plan(model.rule('sgg-exit'), schedule, 'euler', model.spec).cost.relative:.2f}" == "1.50"


@pytest.mark.parametrize("name", TABLE)
def test_attention_is_what_is_quadratic_in_the_tokens(name):
    """Two products of [T, K] by [K, T] and [T, T] by [T, K] per head: 4 T^2 D, for the joint and the dual attention."""
    spec = BenchModel.parse(name).spec
    tokens = spec.tokens(spec.height, spec.width)
    joint = tokens + spec.text_tokens
    dual = len(getattr(spec, "dual_layers", ()))
    assert attention_flops(spec) == 4 * spec.dim * (spec.depth * joint**2 + dual * tokens**2)


def test_the_gain_is_the_ratio_of_the_costs():
    line = cost_line("dit-xl/2:256")
    assert line.gain == line.published / line.exact


def test_parameters_that_a_forward_reads():
    """By hand for SiT-S/2: 12 D^2 + 9 D per block, patch embedding, time embedder, and the last projection."""
    spec = sit_spec("S/2")
    d, patch = spec.dim, spec.patch**2
    block = 12 * d**2 + (3 + 1 + 4 + 1) * d
    outside = (patch * 4 + 1) * d + (256 + 1) * d + (d + 1) * d + (d + 1) * patch * 8
    assert block_parameters(spec) == spec.depth * block + outside


def test_the_roofline_is_arithmetic_or_the_weights_whichever_takes_longer():
    plan = sgg_plan(sit_spec("S/2"), 4)
    weights = block_parameters(plan.spec) * 2
    arithmetic = roofline_seconds(plan, 3, ceilings(1e30, 1e12), torch.bfloat16)
    assert arithmetic == pytest.approx(3 * plan.cost.flops / 1e12)
    traffic = roofline_seconds(plan, 3, ceilings(1e9, 1e30), torch.bfloat16)
    assert traffic == pytest.approx(plan.calls * weights / 1e9)


def test_the_roofline_of_the_specified_card():
    """SD3.5-medium, 28 segmented calls, bf16 at 790 TFLOP/s: 1.755 x 28 x 11.244 TFLOP over it, .70 s."""
    table = roofline_table(ceilings(4.3e12, 790e12), torch.bfloat16, ("sd3.5-medium",))
    assert table.splitlines()[-1] == "| sd3.5-medium | 0.399 s | 0.699 s |"


def test_a_dtype_without_a_ceiling_is_refused():
    with pytest.raises(ValueError, match=r"no ceiling was measured for float32; measured: bfloat16"):
        roofline_seconds(sgg_plan(sit_spec("S/2"), 4), 1, ceilings(1e9, 1e9), torch.float32)
