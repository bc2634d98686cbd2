"""Where kernels read operands by descriptor: the chip decides, and one trial on the device."""

import pytest
import torch

from segue.kernels import descriptors
from segue.kernels.triton_runtime import trace_launches


@pytest.mark.parametrize(("chip", "has"), [("sm_80", False), ("sm_90", True), ("sm_100", True), ("gfx942", False)])
def test_the_chip_decides_where_nothing_runs(chip, has):
    with trace_launches(chip):
        assert descriptors.has_descriptors(torch.device("cuda")) is has


@pytest.mark.parametrize("fails", [False, True])
def test_a_device_is_tried_once_and_a_failure_is_told(fails, monkeypatch, caplog):
    tried = []

    def launch(kernel, grid, arguments, warps):
        tried.append(kernel)
        if fails:
            raise RuntimeError("no tensor maps here")

    zeros = torch.zeros
    monkeypatch.setattr(descriptors.torch, "zeros", lambda *shape, dtype, device: zeros(*shape, dtype=dtype))
    monkeypatch.setattr(descriptors.torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(descriptors, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(descriptors, "launch", launch)
    monkeypatch.setattr(descriptors, "descriptor", lambda x, block: x)
    descriptors._works.cache_clear()
    try:
        assert [descriptors.has_descriptors(torch.device("cuda", 0)) for _ in range(2)] == [not fails] * 2
    finally:
        descriptors._works.cache_clear()
    assert tried == [descriptors.copy_tile]
    assert ["no tensor maps here" in message for message in caplog.messages] == [True] * fails
