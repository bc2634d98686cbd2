"""The times of a step's kernels, from spans as a profiler gives them."""

import sys

import pytest
import torch

from segue.bench.cards import CARDS
from segue.bench.cases import BenchModel
from segue.bench.census import take_census
from segue.bench.kernel_record import ATTENTION, COPY, KINDS, OWN, PRODUCT, PYTORCH
from segue.bench.kernel_times import Span, busy_time, kind_of, main, own_names, step_tables, step_time

STEP = (("gemm", 0.0, 4.0), ("norm", 5.0, 6.0), ("gemm", 5.5, 9.5))  # 1 idle, .5 overlapping


def replays(*slower: float) -> list[Span]:
    """Steps one after the other, each slower by a factor."""
    return [Span(name, 100 * i + start * f, 100 * i + end * f) for i, f in enumerate(slower) for name, start, end in STEP]


def test_medians_of_replays_in_the_order_of_a_step():
    time = step_time(list(reversed(replays(1, 3, 2))), 3, frozenset({"norm"}))
    assert [(kernel.name, kernel.kind, kernel.microseconds) for kernel in time.kernels] == [
        ("gemm", PRODUCT, 8.0),
        ("norm", OWN, 2.0),
        ("gemm", PRODUCT, 8.0),
    ]
    assert (time.wall, time.busy) == (19.0, 17.0)


def test_spans_inside_others_are_busy_once():
    assert busy_time([Span("a", 0, 10), Span("b", 2, 3), Span("c", 12, 13), Span("d", 9, 11)]) == 12


@pytest.mark.parametrize(("spans", "word"), ((replays(1, 1)[:-1], "5 kernels"), ([], "CUPTI")))
def test_what_are_no_whole_replays_is_refused(spans, word):
    with pytest.raises(ValueError, match=word):
        step_time(spans, 2, frozenset())


def test_replays_of_other_kernels_are_refused():
    spans = replays(1, 1)
    with pytest.raises(ValueError, match="same step"):
        step_time([*spans[:-1], Span("other", spans[-1].start, spans[-1].end)], 2, frozenset())


@pytest.mark.parametrize(
    ("name", "kind"),
    (
        ("nvjet_tst_192x192_64x4_2x1_v_bz_TNT", PRODUCT),
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90>>", ATTENTION),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6", ATTENTION),
        ("Memcpy DtoD (Device -> Device)", COPY),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor>", PYTORCH),
        ("modulated_norm_kernel", OWN),
    ),
)
def test_kernels_are_told_apart_by_name(name, kind):
    assert kind_of(name, frozenset({"modulated_norm_kernel"})) == kind


def test_measured_stands_beside_what_the_census_counts():
    step = take_census(BenchModel.parse("sit-s/2@64:32"), CARDS["h100"]).steps[0]
    names = own_names(step)
    spans = [Span(name, 2.0 * i, 2.0 * i + 1) for i, name in enumerate(sorted(names))]
    kinds, slowest = step_tables("a step", step_time(spans, 1, names), step, 2)
    columns = [list(column.cells) for column in kinds.columns]
    assert columns[0] == [kind for kind in KINDS if step.groups("kind").get((kind,))]
    assert columns[1][columns[0].index(OWN)] == str(len(names))
    counted = sum(number for kernel, number in step.kernels.items() if kernel.kind == OWN)
    assert columns[4][columns[0].index(OWN)] == str(counted)
    assert len(slowest.rows) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_there_is_one_sentence_and_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernel_times", "dit-xl/2", "--out", str(tmp_path / "new" / "times.jsonl")])
    with pytest.raises(SystemExit):
        main()
    assert "device 'cuda' is not present" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
