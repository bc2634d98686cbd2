"""A network whose weights come later has the shapes of one with weights, and draws none."""

import pytest
import torch
from tiny_models import tiny_sit
from torch import nn

from segue.models.mmdit_spec import MMDiTSpec
from segue.models.registry import make_network
from segue.models.unallocated import unallocated

SPECS = {
    "sit": tiny_sit().spec,
    "mmdit": MMDiTSpec(name="tiny", channels=4, height=8, width=8, patch=2, dim=24, depth=2, heads=3, dual_layers=(0,)),
}


@pytest.fixture
def nothing_drawn(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a weight was drawn")

    for name in ("normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(torch.Tensor, name, fail, raising=False)


@pytest.mark.parametrize("kind", SPECS)
def test_shapes_and_tables_are_those_of_a_network_with_weights(kind, request):
    usual = make_network(SPECS[kind])
    request.getfixturevalue("nothing_drawn")
    with unallocated():
        found = make_network(SPECS[kind])
    assert [*found.state_dict()] == [*usual.state_dict()]
    for name, parameter in usual.named_parameters():
        mine = found.get_parameter(name)
        assert (mine.device.type, mine.shape, mine.dtype) == ("meta", parameter.shape, parameter.dtype)
    for name, table in usual.named_buffers():
        mine = found.get_buffer(name)
        assert mine.is_meta or torch.equal(mine, table)


@pytest.mark.usefixtures("nothing_drawn")
def test_elsewhere_weights_are_drawn_as_ever():
    with unallocated():
        nn.Embedding(3, 4)
        table = nn.init.ones_(torch.zeros(3, device="cpu"))
    assert table.eq(1).all()
    with torch.device("meta"), pytest.raises(AssertionError, match="a weight was drawn"):
        nn.Embedding(3, 4)
