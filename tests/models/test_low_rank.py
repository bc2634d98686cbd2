"""Adapters of weights: merging changes nothing but roundings, and a file fits the network that it was made for alone."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_sit

from segue.models.adapted import AdaptedSiT, AdapterSpec
from segue.models.adapter_file import ADAPTER_KEY, AdapterFacts, merge_adapter, read_adapter, save_adapter
from segue.models.fingerprint import fingerprint
from segue.models.low_rank import TARGETS, LowRankSpec, merge_adapters

# The same sums of fp32 in another order, through 5 blocks, and an adapter that was half precision on the way
MERGED = 1e-5
EVERYTHING = AdapterSpec(LowRankSpec(3, alpha=5.0, targets=TARGETS), scales=(0.0, 2.5))


def trained(network, spec, seed):
    """An adapter of random numbers that half precision holds, as if it had been trained."""
    adapted = AdaptedSiT(copy.deepcopy(network).float(), spec)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).half().float()
    return adapted


def facts_of(network, spec, **changes):
    values = {"model": "tiny", "weights": fingerprint({"main": network}), "rule": "cfg:scale=2", "steps": 4, "solver": "euler"}
    return AdapterFacts(**values | {"sigmas": (1.0, 0.75, 0.5, 0.25, 0.0), "spec": spec} | changes)


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 6, 10, generator=generator), torch.rand(3, generator=generator), torch.tensor([0, 5, 8])


def write(tmp_path, network, spec, seed=1, **changes):
    path = tmp_path / "adapter.safetensors"
    save_adapter(trained(network, spec, seed), path, facts_of(network, spec, **changes))
    return path


@pytest.mark.parametrize("per_block_embedding", [False, True])
def test_a_merged_network_computes_what_the_adapted_one_does_at_every_scale(seed, tmp_path, per_block_embedding):
    network = tiny_sit(seed, per_block_embedding=per_block_embedding)
    path, given = write(tmp_path, network, EVERYTHING, seed), inputs(seed)
    plain = network(*given)
    for scale in (0.0, 1.0, 1.7, 2.5):
        expected = trained(network, EVERYTHING, seed)(*given, torch.full((3,), scale)).detach()
        merged = merge_adapter(copy.deepcopy(network), read_adapter(path), scale)
        assert (merged(*given) - expected).abs().max() < MERGED * expected.abs().max()
        assert (expected - plain).abs().max() > 0.05
        assert merged.state_dict().keys() == network.state_dict().keys()


def test_merging_is_accumulated_in_fp32_whatever_the_weights_are_stored_in(seed, tmp_path):
    spec = AdapterSpec(LowRankSpec(2, targets=("fc1",), layers=(1, 3)))
    network = tiny_sit(seed).half()
    merged = merge_adapter(copy.deepcopy(network), read_adapter(write(tmp_path, network, spec, seed)))
    adapted = trained(network, spec, seed)
    for layer in range(5):
        stored, found = network.blocks[layer].mlp.fc1.weight, merged.blocks[layer].mlp.fc1.weight
        if layer not in (1, 3):
            assert torch.equal(found, stored.float())
            continue
        pair = adapted.network.blocks[layer].mlp.fc1.parametrizations.weight[0]
        exact = stored.double() + pair.b.double() @ pair.a.double()
        assert (found.double() - exact).abs().max() < 1e-6 < (exact.half().double() - exact).abs().max()


def test_a_new_adapter_changes_nothing_bit_for_bit(seed):
    network = tiny_sit(seed)
    given = inputs(seed)
    adapted = AdaptedSiT(copy.deepcopy(network), AdapterSpec(LowRankSpec(targets=TARGETS), (0.5, 2.0)))
    assert torch.equal(adapted(*given, torch.ones(3)), network(*given))


def test_merging_a_copy_leaves_the_adapter_of_the_original(seed):
    adapted = trained(tiny_sit(seed), AdapterSpec(LowRankSpec(2)), seed)
    given = inputs(seed)
    before = adapted(*given).detach()
    merge_adapters(copy.deepcopy(adapted.network))
    assert torch.equal(adapted(*given), before)


def test_only_the_adapter_is_trained_and_only_it_is_written(seed, tmp_path):
    network = tiny_sit(seed)
    adapted = AdaptedSiT(network, AdapterSpec(LowRankSpec(2, targets=("qkv", "final"), layers=(4,))))
    trainable = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert len(trainable) == 2 * 3 and all("parametrizations.weight.0" in name for name in trainable)
    assert set(adapted.adapter_tensors()) == {
        f"{name}.{part}"
        for name in ("blocks.4.attn.qkv", "final_layer.linear", "final_layer.adaLN_modulation.1")
        for part in "ab"
    }


def test_an_adapter_of_another_network_is_refused_and_leaves_it_alone(seed, tmp_path):
    path, other = write(tmp_path, tiny_sit(seed), AdapterSpec(LowRankSpec(2))), tiny_sit(seed + 1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="was made for tiny with weights"):
        merge_adapter(other, read_adapter(path))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("scale, words", [(3.0, r"adapter_scale must lie in \[0, 2.5\]"), (-1.0, "got -1")])
def test_a_scale_beyond_the_trained_range_is_refused(seed, tmp_path, scale, words):
    network = tiny_sit(seed)
    with pytest.raises(ValueError, match=words):
        merge_adapter(network, read_adapter(write(tmp_path, network, EVERYTHING)), scale)


def test_a_scale_of_an_adapter_that_has_one_is_refused(seed, tmp_path):
    network = tiny_sit(seed)
    with pytest.raises(ValueError, match="trained at one scale"):
        merge_adapter(network, read_adapter(write(tmp_path, network, AdapterSpec(LowRankSpec(2)))), 1.0)


def test_a_header_of_another_rank_and_tensors_that_are_not_finite_are_refused(seed, tmp_path):
    network, spec = tiny_sit(seed), AdapterSpec(LowRankSpec(2, targets=("proj",)))
    path = write(tmp_path, network, spec)
    adapter = read_adapter(path)
    wrong = facts_of(network, AdapterSpec(LowRankSpec(3, targets=("proj",))))
    save_file(dict(adapter.tensors), path, metadata={ADAPTER_KEY: wrong.to_json()})
    with pytest.raises(ValueError, match=r"blocks.0.attn.proj.a has shape \[2, 32\], not \[3, 32\]"):
        merge_adapter(network, read_adapter(path))
    tensors = dict(adapter.tensors) | {"blocks.0.attn.proj.a": torch.full((2, 32), torch.nan, dtype=torch.float16)}
    save_file(tensors, path, metadata={ADAPTER_KEY: facts_of(network, spec).to_json()})
    with pytest.raises(ValueError, match="is not finite"):
        merge_adapter(network, read_adapter(path))
    missing = {name: value for name, value in adapter.tensors.items() if name != "blocks.2.attn.proj.b"}
    save_file(missing, path, metadata={ADAPTER_KEY: facts_of(network, spec).to_json()})
    with pytest.raises(ValueError, match=r"it lacks blocks.2.attn.proj.b"):
        merge_adapter(network, read_adapter(path))


def test_files_that_hold_no_adapter_are_refused_in_one_sentence(seed, tmp_path):
    path = write(tmp_path, tiny_sit(seed), AdapterSpec(LowRankSpec(2)))
    whole = path.read_bytes()
    for length in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or no safetensors file"):
            read_adapter(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no adapter of Segue"):
        read_adapter(path)
    for text in ("{", '{"format": 2}', '{"format": 1, "spec": 3}', "[]"):
        save_file({"x": torch.zeros(1)}, path, metadata={ADAPTER_KEY: text})
        with pytest.raises(ValueError, match="its header is not valid"):
            read_adapter(path)
    with pytest.raises(FileNotFoundError, match="there is no adapter"):
        read_adapter(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LowRankSpec(0), "rank must be a positive integer, got 0"),
        (lambda: LowRankSpec(targets=("qkv", "nope")), "targets must be some of qkv, proj, fc1, fc2, adaLN, final, got nope"),
        (lambda: LowRankSpec(alpha=-1.0), r"alpha must be positive and finite, got -1.0"),
        (lambda: AdapterSpec(scales=(2.0, 1.0)), "0 <= LOW < HIGH"),
        (lambda: AdaptedSiT(tiny_sit(0), AdapterSpec(LowRankSpec(33))), r"rank must be at most 32, .* got 33"),
        (lambda: AdaptedSiT(tiny_sit(0), AdapterSpec(LowRankSpec(layers=(5,)))), "has the layers 0 to 4, got 5"),
    ],
)
def test_specs_that_cannot_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
