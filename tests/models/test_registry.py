"""The registry knows every kind of network, and gives each spec, network and checkpoint what belongs to it."""

from types import SimpleNamespace

import pytest
from torch import nn

from segue.models.diffusers_layout import diffusers_layout, dit_sources
from segue.models.mmdit_diffusers import diffusers_sources
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.mmdit_weights import mmdit_layout
from segue.models.official_layout import official_layout
from segue.models.registry import KINDS, make_network, make_rows
from segue.models.spec import ModelSpec, SiTSpec

SIZES = {"channels": 4, "height": 8, "width": 6, "patch": 2, "dim": 24, "depth": 3, "heads": 2}
SPECS = {
    SiTSpec: SiTSpec("tiny-sit", **SIZES, prediction="data_velocity", time="data_time", num_classes=5),
    MMDiTSpec: MMDiTSpec("tiny-mmdit", **SIZES, text_dim=16, pooled_dim=12, position_size=8, text_tokens=7),
}
CAPACITY = {"row_blocks": 2, "slots": 1, "times": 1, "conditions": 1}


def test_every_spec_has_one_kind_and_gets_its_network_and_rows():
    assert sorted(kind.spec.__name__ for kind in KINDS) == sorted(spec.__name__ for spec in ModelSpec.__subclasses__())
    for kind in KINDS:
        network = make_network(SPECS[kind.spec])
        assert type(network) is kind.network and network.spec is SPECS[kind.spec]
        rows = make_rows(network, 2, 8, 6, **CAPACITY)
        assert type(rows) is kind.rows and rows.model is network and rows.batch == 2


def test_a_network_of_no_kind_makes_its_rows_itself():
    class Foreign(nn.Module):
        def rows(self, *shape, **capacity):
            return shape, capacity

    assert make_rows(Foreign(), 3, 8, 6, **CAPACITY) == ((3, 8, 6), CAPACITY)


@pytest.mark.parametrize(
    ("spec", "sources", "reader"),
    (
        (MMDiTSpec, lambda name: (name,), mmdit_layout),
        (MMDiTSpec, diffusers_sources, mmdit_layout),
        (SiTSpec, lambda name: (name,), official_layout),
        (SiTSpec, dit_sources, diffusers_layout),
    ),
)
def test_a_checkpoint_goes_to_the_reader_of_its_network(spec, sources, reader):
    """SD3 and DiT both have ``transformer_blocks`` in diffusers: the first reader that knows the keys has to be right."""
    names = [name for name in make_network(SPECS[spec]).state_dict() if not name.startswith("pos_embed")]
    checkpoint = SimpleNamespace(tensors=dict.fromkeys(key for name in names for key in sources(name)))
    readers = [one for kind in KINDS for one in kind.readers if one.knows(checkpoint)]
    assert readers[0].layout is reader
