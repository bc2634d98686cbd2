"""Networks written for other code: read again they are the same, by our readers and by diffusers' own."""

from dataclasses import replace

import pytest
import torch
from tiny_models import randomize

from segue.models.sit import SiT
from segue.models.sizes import dit_spec, repa_spec, sit_spec
from segue.models.weights import load_network
from segue.models.written_layout import official_tensors, write_diffusers, write_official

TINY = {"dim": 32, "depth": 3, "heads": 2, "num_classes": 5}


def assert_same(ours: SiT, theirs: SiT) -> None:
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("family", "spec"),
    (
        ("dit", dit_spec("S/2", 64, **TINY)),
        ("sit", sit_spec("S/4", 96, **TINY)),
        ("repa", repa_spec("S/2", 48, exits=(2,), qk_norm=True, **TINY)),
        ("sit", sit_spec("S/2", 48, path="cosine", **TINY)),
        ("repa", repa_spec("S/2", 48, path="cosine", **TINY)),
    ),
    ids=("dit", "sit", "repa", "sit-cosine", "repa-cosine"),
)
def test_the_official_layout_is_read_as_the_network_that_was_written(family, spec, tmp_path, seed):
    network = randomize(SiT(spec), seed)
    write_official(network, tmp_path / "x.pt", {"seed": 3})
    read, report = load_network(tmp_path / "x.pt", family, heads=2)
    assert_same(read, network)
    assert replace(read.spec, name=spec.name) == spec and not report.unexpected


def test_diffusers_reads_its_layout_and_computes_the_same(tmp_path, seed):
    from diffusers import DiTTransformer2DModel

    spec = dit_spec("S/2", 64, frequency_shift=1.0, mlp_norm_eps=1e-5, **TINY)
    network = randomize(SiT(spec), seed)
    write_diffusers(network, tmp_path / "transformer")
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    generator = torch.Generator().manual_seed(seed)
    x, time, labels = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0, 501, 999]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        expected = theirs(x, timestep=time, class_labels=labels).sample
        assert (network(x, time, labels) - expected).abs().max() <= 1e-5 * expected.abs().max()  # as the reader's own test
    assert_same(load_network(tmp_path / "transformer")[0], network)


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"parents": (0, 0, 1, 1, 1)}, "superclasses, which the official layout cannot hold"),
        ({"exits": (1, 2)}, "several early-exit heads"),
        ({"width": 16}, "no square grid"),
        ({"time": "data_time"}, "predicts velocity at data_time"),
        ({"attention": "probsparse"}, "another attention than the full one, which the official layout cannot hold"),
    ),
)
def test_what_the_official_layout_cannot_hold_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        official_tensors(SiT(replace(repa_spec("S/2", 64, **TINY), **changes)))


def test_diffusers_takes_its_own_kind_only(tmp_path):
    with pytest.raises(ValueError, match=r"frequency shift 0\.0; diffusers' DiT has 1.0"):
        write_diffusers(SiT(dit_spec("S/2", 64, **TINY)), tmp_path / "x")
    own = {"frequency_shift": 1.0, "mlp_norm_eps": 1e-6, "per_block_embedding": True, "attention": "probsparse"}
    with pytest.raises(ValueError, match="has attention 'probsparse'; diffusers' DiT has 'full'"):
        write_diffusers(SiT(replace(dit_spec("S/2", 64, **TINY), **own)), tmp_path / "x")
    assert not (tmp_path / "x").exists()
