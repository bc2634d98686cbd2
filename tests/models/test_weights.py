"""Loading and saving: every layout round-trips, and every tensor of a file is accounted for."""

import argparse
import copy
import json
import logging

import pytest
import torch
from official_dit import random_state
from safetensors.torch import load_file, save_file
from tiny_models import tiny_sit

from segue.models import bundled
from segue.models.official_layout import mlp_ratio
from segue.models.weights import load_model, load_network, save_model

diffusers = pytest.importorskip("diffusers")


def same(first, second) -> bool:
    """Bitwise equal parameters under the same names, and equal buffers that no file holds."""
    mine, other = dict(first.named_parameters()), dict(second.named_parameters())
    buffers = zip(first.buffers(), second.buffers(), strict=True)
    return (
        mine.keys() == other.keys()
        and all(torch.equal(mine[name], other[name]) for name in mine)
        and all(torch.equal(a, b) for a, b in buffers)
    )


def write(state, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


# --- our own files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"parents": (), "exits": ()}, {"exits": (1, 4), "qk_norm": True, "mlp_ratio": 2.5}, {"per_block_embedding": True}],
)
def test_own_files_round_trip(tmp_path, changes):
    model = tiny_sit(3, **changes)
    save_model(model, tmp_path / "model.safetensors", {"step": "7"})
    for source in (tmp_path, tmp_path / "model.safetensors"):
        loaded, report = load_network(source)
        assert loaded.spec == model.spec
        assert same(loaded, model)
        assert report.loaded == len(model.state_dict())
        assert not report.ignored
    x, time, labels = torch.randn(2, 4, 6, 10), torch.tensor([0.2, 0.9]), torch.tensor([1, model.spec.null_label])
    assert torch.equal(loaded(x, time, labels), model(x, time, labels))


def test_the_stored_dtype_is_kept_and_a_mixture_becomes_fp32(tmp_path):
    exact = tiny_sit(4)
    model = copy.deepcopy(exact).to(torch.bfloat16)
    save_model(model, tmp_path / "model.safetensors")
    loaded, _ = load_network(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.pos_embed, exact.pos_embed)  # not rounded: the engine may run in fp32
    x, time, labels = torch.randn(2, 4, 6, 10), torch.tensor([0.2, 0.9]), torch.tensor([1, 8])
    assert torch.equal(loaded(x, time, labels), model(x, time, labels))
    state = load_file(tmp_path / "model.safetensors")
    state["final_layer.linear.weight"] = state["final_layer.linear.weight"].float()
    save_file(state, tmp_path / "model.safetensors", {"spec": json.dumps(model.spec.to_dict())})
    mixed, _ = load_network(tmp_path)
    assert {value.dtype for value in mixed.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, model.state_dict()[name].float()) for name, value in mixed.state_dict().items())


def test_saving_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    first, second = tiny_sit(5), tiny_sit(6)
    save_model(first, path)
    (tmp_path / "model.safetensors.part").write_text("a download of the user's")

    def fail_after_some(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("segue.models.weights.save_file", fail_after_some)
        with pytest.raises(OSError, match=r"cannot write the checkpoint .*disk full"):
            save_model(second, path)
    assert same(load_network(path)[0], first)
    save_model(second, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "model.safetensors.part"]
    assert (tmp_path / "model.safetensors.part").read_text() == "a download of the user's"
    assert same(load_network(path)[0], second)
    with pytest.raises(OSError, match="cannot write the checkpoint"):
        save_model(first, tmp_path / "absent" / "model.safetensors")


def test_bundled_networks_come_with_their_siblings(tmp_path, monkeypatch):
    strong, weak = tiny_sit(7), tiny_sit(8, depth=3, dim=16, exits=())
    save_model(strong, tmp_path / "strong.safetensors")
    parent = bundled.digest(tmp_path / "strong.safetensors")
    save_model(weak, tmp_path / "weak.safetensors", {"parent": parent})
    files = {"main": str(tmp_path / "strong.safetensors"), "weak": str(tmp_path / "weak.safetensors")}
    monkeypatch.setitem(bundled.BUNDLED, "tiny", files)
    main, others = load_model("tiny")
    assert same(main, strong)
    assert list(others) == ["weak"]
    assert same(others["weak"], weak)
    assert load_model(tmp_path / "weak.safetensors")[1] == {}


# --- official files ---------------------------------------------------------------------------------------------------


def training_file(state, **args):
    """A training checkpoint as REPA writes it; only the EMA has the given weights."""
    other = {name: value + 1 for name, value in state.items()}
    settings = argparse.Namespace(model="SiT-XL/2", path_type="linear", prediction="v", **args)
    return {"model": other, "ema": state, "opt": {"state": {}}, "args": settings, "steps": 400000}


def test_every_container_of_official_weights_gives_the_same_network(tmp_path):
    state = random_state(1, out_channels=4)
    expected, report = load_network(write(state, tmp_path / "a.safetensors"), "repa", heads=2)
    assert report.loaded == len(state) - 1  # all but the position table are parameters
    assert not report.ignored
    for name in ("a.pt", "a.pth", "a.bin"):
        assert same(load_network(write(state, tmp_path / name), "repa", heads=2)[0], expected)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(load_network(tmp_path / "old.pt", "repa", heads=2)[0], expected)
    parallel = {f"module.{name}": value for name, value in state.items()}
    assert same(load_network(write(parallel, tmp_path / "ddp.pt"), "repa", heads=2)[0], expected)
    assert same(load_network(write({"model": parallel, "opt": {}}, tmp_path / "m.pt"), "repa", heads=2)[0], expected)


def test_training_files_give_their_averaged_weights_and_their_family(tmp_path):
    state = random_state(2, out_channels=4, projectors=True)
    model, report = load_network(write(training_file(state), tmp_path / "0400000.pt"), heads=2)
    assert (model.spec.prediction, model.spec.time, model.spec.name) == ("velocity", "sigma", "0400000")
    assert torch.equal(model.final_layer.linear.weight, state["final_layer.linear.weight"])
    assert {key for key in report.ignored if key.startswith("projectors.")} == {key for key in state if "projectors" in key}
    assert f"{len(state) - 7} tensors loaded, 8 ignored" in str(
        report
    )  # 6 of projectors, model and opt; the table is no tensor
    assert "used in training only: projectors.0.0.weight" in str(report)
    assert "not needed beside 'ema': model, opt" in str(report)


@pytest.mark.parametrize(
    ("family", "args", "path"),
    [
        ("repa", {"path_type": "cosine", "prediction": "v"}, "cosine"),
        ("sit", {"path_type": "GVP", "prediction": "velocity"}, "cosine"),
        ("sit", {"path_type": "Linear"}, "linear"),
        ("repa", {}, "linear"),
    ],
)
def test_the_path_is_that_of_the_training_arguments(family, args, path, tmp_path):
    torch.save({"ema": random_state(2, out_channels=4), "args": argparse.Namespace(**args)}, tmp_path / "a.pt")
    assert load_network(tmp_path / "a.pt", family, heads=2)[0].spec.path == path


def test_a_file_that_only_repa_could_have_written_needs_no_family(tmp_path):
    for number, (mark, options) in enumerate({"projectors": {}, "mid_layer": {"exit_layer": 2}}.items()):
        state = random_state(3, depth=5, out_channels=4, **{mark: True})
        assert load_network(write(state, tmp_path / f"{number}.pt"), heads=2, **options)[0].spec.prediction == "velocity"


@pytest.mark.parametrize(("args", "given", "layer"), [({"weak_layer": 2}, None, 2), ({"weak_layer": 2}, 3, 3), ({}, 1, 1)])
def test_the_branch_head_follows_the_callers_block_then_the_arguments(tmp_path, args, given, layer):
    state = random_state(4, depth=5, out_channels=4, mid_layer=True)
    model, _ = load_network(write(training_file(state, **args), tmp_path / "sgg.pt"), heads=2, exit_layer=given)
    assert model.spec.exits == (layer,)
    assert torch.equal(model.exit_layers[str(layer)].linear.weight, state["mid_layer.linear.weight"])


@pytest.mark.parametrize(("dim", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_heads_of_published_widths_are_known(tmp_path, dim, heads):
    state = random_state(5, depth=1, dim=dim, hidden=8, grid=1, classes=1)
    assert load_network(write(state, tmp_path / "a.safetensors"), "dit")[0].spec.heads == heads


def test_heads_are_read_from_a_query_key_norm(tmp_path):
    assert load_network(write(random_state(6, qk_heads=3), tmp_path / "a.pt"), "sit")[0].spec.heads == 3


def test_mlp_ratio_gives_back_the_width():
    for dim in (36, 48, 49, 384, 1152):
        for hidden in range(1, 5 * dim, 7):
            assert int(dim * mlp_ratio(hidden, dim)) == hidden


def test_a_position_table_drifted_by_averaging_is_accepted(tmp_path):
    """The EMA of a constant, 0.9999 x + 0.0001 x, ends up to 1.7e-4 away by fp32 rounding: real files look like this."""
    state = random_state(7)
    table, average = state["pos_embed"], state["pos_embed"].clone()
    for _ in range(4000):
        average.mul_(0.9999).add_(table, alpha=1 - 0.9999)
    assert 5e-5 < (average - table).abs().max() < 2e-4
    model, _ = load_network(write(state | {"pos_embed": average}, tmp_path / "a.pt"), "dit", heads=2)
    assert torch.equal(model.positions(6, 6), average[0])
    assert torch.equal(model.positions(6, 8), model.position_table(6, 8))


# --- diffusers --------------------------------------------------------------------------------------------------------


def test_every_container_of_diffusers_weights_gives_the_same_network(tmp_path, caplog):
    torch.manual_seed(8)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=24, num_layers=3, sample_size=6, num_embeds_ada_norm=7, out_channels=8
    )
    theirs.save_pretrained(tmp_path / "plain")
    with caplog.at_level(logging.INFO):
        expected, report = load_network(tmp_path / "plain")
    assert str(report) in caplog.text
    assert (expected.spec.name, expected.spec.per_block_embedding, report.ignored) == ("plain", True, {})
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    theirs.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    theirs.save_pretrained(tmp_path / "pipeline" / "transformer")
    file = tmp_path / "plain" / "diffusion_pytorch_model.safetensors"
    for source in (tmp_path / "sharded", tmp_path / "pickled", tmp_path / "pipeline", file):
        assert same(load_network(source)[0], expected)
