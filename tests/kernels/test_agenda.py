"""What the tuner does first, and whose say counts."""

import pytest
import torch

from segue.kernels import agenda, candidates, tune
from segue.kernels.agenda import Choice
from segue.kernels.catalogue import SIZES, cases
from segue.kernels.dispatch import FP8_OPERATIONS, HEAD_PRODUCTS
from segue.kernels.launch import RowLaunch
from segue.kernels.launch_lookup import using
from segue.kernels.resources import case_launches, runs_on
from segue.kernels.shares import calls, is_rare, share, step_seconds, weight

SERVED = "sm_90"
ATTENTION, PHILOX = ("attention", "k64 t4096"), ("philox", "any")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_what_a_run_gains_most_from_comes_first(architecture):
    items = agenda.agenda(architecture, set())
    entries = [item for item in items if not isinstance(item, Choice)]
    able = {key: [case for case in tune.users(architecture)[key] if runs_on(case, architecture)] for key in entries}
    values = [agenda.value(able[key]) for key in entries]
    assert values == sorted(values, reverse=True) and len(set(items)) == len(items)
    seen = set()
    for item in items:
        if isinstance(item, Choice):  # its own kernel is tuned by then
            needed = set().union(*(agenda.lookups(case, architecture) for case in item.cases if not case.vendor))
            assert needed <= seen
        else:
            seen.add(item)
    fp8 = {item.operation for item in items if isinstance(item, Choice)} & set(FP8_OPERATIONS)
    assert (fp8 == {"fp8_linear"}) == (architecture == "sm_90")
    assert any(key[0] == "quantise" for key in entries) == (architecture == "sm_90")


def test_toys_have_no_say_in_what_real_models_are_launched_with():
    """A network of width 192, or of 16 tokens, shares no entry of a product, an attention or a norm with SD3 or DiT-XL."""
    small = {"herbarium", "DiT-B/8 256"}
    for key, alike in tune.users(SERVED).items():
        if key[0] in ("linear", "linear_residual", "attention", "adaln", "quantise", "heads") and key[1] != "fp32":
            names = {case.size.name for case in alike}
            assert not names & small or names <= small, key


def test_quantising_and_norms_are_tuned_apart():
    for key, alike in tune.users(SERVED).items():
        assert (key[0] == "quantise") == any(case.operation == "quantize_rows" for case in alike)


def test_full_precision_has_no_say_in_16_bits():
    for key, alike in tune.users(SERVED).items():
        if key[0] == "attention":
            assert {case.dtype == torch.float32 for case in alike} == {key[1] == "fp32"}
    for choice in agenda.choices(SERVED):
        assert choice.shape_class != "fp32" and {case.dtype for case in choice.cases} == {torch.bfloat16}


def test_with_few_tokens_a_program_takes_few_rows():
    """DiT-XL/2 at 256 px and one sample has 256 rows of tokens a branch, and a card 132 multiprocessors to fill."""
    shares = {"d2048 m512": 1, "d2048 m2048": 2, "d2048 m8192": 4}
    for shape_class, rows in shares.items():
        config = candidates.candidates(("adaln", shape_class))[0]
        assert isinstance(config, RowLaunch) and config.rows == rows
    case = next(case for case in cases(SIZES[7]) if case.operation == "residual_modulated_norm")
    with using("adaln", "d2048 m512", candidates.candidates(("adaln", "d2048 m512"))[0]):
        (launch,) = case_launches(case, SERVED)
    assert launch.grid[0] * launch.grid[1] == case.size.rows * case.size.tokens >= 2 * 132


# --- weights -----------------------------------------------------------------------------------------------------------


def test_the_shares_of_a_step_are_parts_of_it():
    """Of the operations that every run has, each once; more than half of SD3's step are products and attention."""
    for size in SIZES:
        usual = [case for case in cases(size) if not is_rare(case) and case.operation not in HEAD_PRODUCTS]
        assert sum(map(share, usual)) == pytest.approx(size.weight)
    sd3 = [case for case in cases(SIZES[4]) if not is_rare(case)]
    assert sum(share(case) for case in sd3 if case.has_product) > 0.5
    attention = next(case for case in sd3 if case.operation == "attention")
    assert share(attention) == max(map(share, sd3))
    assert weight(attention) * step_seconds(SIZES[4]) == SIZES[4].layers


def test_a_form_counts_as_often_as_it_occurs():
    """Of SD3.5's residual norms half bring the bias of a projection; a second attention is not in every block."""
    size = next(size for size in SIZES if size.name == "SD3.5-medium 1024")
    counts = {(case.operation, case.variant): calls(case) for case in cases(size)}
    norm = "residual_modulated_norm"
    assert [counts[norm, form] for form in ("", "with bias", "of the text", "of the text, with bias")] == [24] * 4
    assert counts["split_heads_norm", "of the image alone"] == 13 and counts["joint_heads_norm", ""] == 24
    assert counts["quantize_streams", "of two attentions"] == 13 and counts["quantize_streams", "with GELU"] == 24
    assert counts["quantize_rows", "with GELU"] == 1  # of the last block
    image, text = (
        next(one for one in cases(size) if one.name == f"{norm}{form}, {size.name}") for form in ("", " of the text")
    )
    assert share(text) < share(image) / 4  # 333 tokens against 4096
    alone = [case for case in cases(size) if case.branches == 1]
    of_unguided = {"embed_patches", "readout_update", "modulated_norm", norm, "gated_residual"}
    in_fp8 = {"modulated_norm_fp8", f"{norm}_fp8"}
    of_nag = {"attention_lse", "merge_normalized"}  # by itself
    assert {case.operation for case in alone} == of_unguided | in_fp8 | of_nag
    assert all(map(is_rare, alone))
    single = next(one for one in cases(SIZES[2]) if one.operation == norm)
    assert calls(single) == 2 * single.size.layers


def test_tables_of_another_width_are_other_shapes():
    """The modulation of SD3.5-medium is wider than that of SD3-medium, whose other operations are the same."""
    gathers = [
        case for size in SIZES[4:6] for case in cases(size) if case.operation == "gather_modulation" and not case.variant
    ]
    assert len(agenda.weighed(gathers, 1.0)) == 2
