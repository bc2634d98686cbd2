"""A record says the weights as they are, and what was read of them once is not read again."""

import gc
import weakref

import pytest
import torch
from tiny_dit import dit_vae
from tiny_models import tiny_sit
from torch import nn

from segue import CFG, AutoGuidance, Engine
from segue.engine.records.known_fingerprints import known_fingerprint
from segue.models.fingerprint import fingerprint


@pytest.fixture
def copies(monkeypatch):
    """The tensors that were copied to the host, so far."""
    copied, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copied.append(tensor.shape) or cpu(tensor))
    return copied


def test_a_second_record_copies_no_weight(copies):
    engine = Engine(tiny_sit(), {"weak": tiny_sit(1)}, device="cpu", vae=dit_vae(3))
    runs = [engine.sample([1, 2], CFG(2.0) + AutoGuidance(0.5), seeds=seed, steps=2) for seed in (0, 7)]
    first = runs[0].record().origin
    weights = [network.state_dict() for network in (*engine.models.values(), engine.decoder.vae)]
    assert len(copies) == sum(map(len, weights))
    copies.clear()
    assert [run.record().origin for run in runs] == [first, first]
    assert runs[1].record().part(1).origin == first
    assert copies == []
    assert (first.weights, first.vae_weights) == (fingerprint(engine.models), fingerprint({"vae": engine.decoder.vae}))


def in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.add_(0.25)


def uncounted(weight: nn.Parameter) -> None:
    weight.data += 0.25


def replaced(weight: nn.Parameter) -> None:
    weight.data = weight.data + 0.25


@pytest.mark.parametrize("change", [in_place, uncounted, replaced])
@pytest.mark.parametrize("network", ["main", "weak", "vae"])
def test_a_changed_weight_changes_the_record(network, change):
    engine = Engine(tiny_sit(), {"weak": tiny_sit(1)}, device="cpu", vae=dit_vae(3))
    run = engine.sample([1], CFG(2.0), seeds=0, steps=1)
    before = run.record().origin
    vae = engine.decoder.vae
    change(list((vae if network == "vae" else engine.models[network]).parameters())[3])
    after = run.record().origin
    assert (after.weights, after.vae_weights) == (fingerprint(engine.models), fingerprint({"vae": vae}))
    assert (after.weights != before.weights, after.vae_weights != before.vae_weights) == (network != "vae", network == "vae")


def test_weights_of_any_dtype_are_watched(copies):
    network = nn.Module()
    for i, dtype in enumerate((torch.float8_e4m3fn, torch.int8, torch.bool, torch.float16, torch.float64, torch.int64)):
        network.register_buffer(f"buffer_{i}", torch.arange(7).remainder(3).to(dtype))
    for name in network.state_dict():
        before = known_fingerprint({"main": network})
        copies.clear()
        assert known_fingerprint({"main": network}) == before and copies == []
        tensor = getattr(network, name)
        tensor.copy_(1 - tensor.float())
        assert known_fingerprint({"main": network}) == fingerprint({"main": network}) != before


def test_networks_in_other_roles_are_other_networks():
    first, second = tiny_sit(0), tiny_sit(1)
    sets = ({"main": first}, {"weak": first}, {"main": first, "weak": second}, {"main": second, "weak": first})
    for _ in range(2):
        assert [known_fingerprint(models) for models in sets] == [fingerprint(models) for models in sets]


def test_what_is_known_of_networks_does_not_keep_them():
    networks = [tiny_sit(0), tiny_sit(1)]
    known_fingerprint({"main": networks[0], "weak": networks[1]})
    seen = [weakref.ref(network) for network in networks]
    del networks
    gc.collect()
    assert [network() for network in seen] == [None, None]
