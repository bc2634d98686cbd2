"""Where a model of a card chooses kernels that no card has measured."""

import pytest
import torch

from segue.bench import predict
from segue.bench.cards import CARDS
from segue.bench.cases import BenchModel
from segue.bench.census import take_census
from segue.bench.predicted_choice import LEAST_GAIN, TABLE_FILE, predicted_choices, table_source
from segue.kernels import dispatch
from segue.kernels.predicted_table import PREDICTED

H100 = CARDS["h100"]


@pytest.mark.parametrize("measured", [{}, {("project_joint_heads", "m8192 in2048 out8192"): "triton"}], ids=["none", "one"])
def test_the_committed_table_is_what_the_model_predicts_now(measured, monkeypatch):
    """After a change of the model, the catalogue or a kernel: ``python -m segue.bench.predicted_choice``.

    Whatever was measured by then; and asking changes neither table.
    """
    monkeypatch.setitem(dispatch.PREFERRED, "sm_90", measured)
    before = dict(PREDICTED["sm_90"])
    assert table_source() == TABLE_FILE.read_text(encoding="utf-8")
    assert PREDICTED["sm_90"] == before and dispatch.PREFERRED["sm_90"] == measured


def test_what_is_predicted_is_faster_by_the_same_model(monkeypatch):
    """Of a whole step too: with the predictions it takes less time than without.

    They are those of a faster product than the card's: of that none is predicted.
    """
    monkeypatch.setattr(predict, "OWN_PRODUCT_SHARE", 0.9)
    found = predicted_choices("sm_90")
    assert found and all(gain >= LEAST_GAIN for _, gain in found.values())
    monkeypatch.setitem(PREDICTED, "sm_90", found)
    model = BenchModel.parse("sd3.5-medium")
    with_them = take_census(model, H100, "none").steps[0].total()
    without = take_census(model, H100, "none", kernels="auto,project_heads=reference,project_joint_heads=reference")
    saved = 1 - with_them.seconds / without.steps[0].total().seconds
    assert saved > 0.02 and with_them.bytes < without.steps[0].total().bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_request_for_the_reference_is_no_prediction(dtype):
    census = take_census(BenchModel.parse("sd3.5-medium@128:64"), H100, "none", dtype=dtype, kernels="reference")
    assert not census.selection.predicted
