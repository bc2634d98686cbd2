"""Every bad checkpoint is refused in one sentence that names the file and what is wrong with it."""

import argparse
import json
import pickle
import re

import pytest
import torch
from official_dit import random_state
from safetensors.torch import load_file, save_file
from tiny_models import tiny_sit

from segue.models import bundled
from segue.models.weights import load_model, load_network, save_model

diffusers = pytest.importorskip("diffusers")

CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 6,
    "patch_size": 2,
    "num_embeds_ada_norm": 7,
}


def refused(message: str, source, *arguments, error=ValueError, **options) -> str:
    """``load_model`` raises ``error`` with one line that contains ``message``; returns the line."""
    with pytest.raises(error, match=re.escape(message)) as caught:
        load_model(source, *arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "tiny.safetensors"
    save_model(tiny_sit(1), path)
    return path


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path, monkeypatch):
    refused("'herbarum' is neither a bundled model (herbarium", "herbarum", error=FileNotFoundError)
    refused("holds no model: expected model.safetensors", tmp_path, error=FileNotFoundError)
    monkeypatch.setitem(bundled.BUNDLED, "tiny", {"main": "absent.safetensors"})
    refused("the bundled checkpoint absent.safetensors is missing", "tiny", error=FileNotFoundError)
    refused("states its own spec; family, heads, exit_layer and variant do not apply", "tiny", "dit")
    with pytest.raises(ValueError, match="no bundled model is named 'weeds'; there is: herbarium"):
        bundled.bundled_files("weeds")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint file or folder"):
        load_network(tmp_path / "absent.pt")


def test_unknown_suffix(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    refused("unknown suffix '.onnx'; accepted: .safetensors, .pt, .pth, .bin, .ckpt", tmp_path / "a.onnx")


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, -1])
def test_truncated_safetensors(tmp_path, own_file, kept):
    data = own_file.read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    refused("a.safetensors is truncated or not a safetensors file", tmp_path / "a.safetensors")


@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_truncated_torch_files(tmp_path, kept):
    torch.save(random_state(1), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    refused("a.pt is truncated or not a torch checkpoint", tmp_path / "a.pt", "dit")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_of_another_kind(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"GIF89a, or anything else" * 40)
    refused("is truncated or not a", tmp_path / f"a.{suffix}")


class Intruder:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("wrap", [lambda code: {"weight": code}, lambda code: {"ema": {}, "args": argparse.Namespace(a=code)}])
def test_pickled_code_is_refused_and_never_run(tmp_path, wrap):
    content = wrap(Intruder(tmp_path / "harm"))
    torch.save(content, tmp_path / "a.pt")
    refused("open, which is code and is never loaded", tmp_path / "a.pt")
    with open(tmp_path / "b.bin", "wb") as file:
        pickle.dump(content, file, protocol=2)
    refused("b.bin", tmp_path / "b.bin")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list, not a dictionary of tensors"),
        ({"a": "text"}, "has the tensor names of no known network: none"),
        ({"net": {"a": torch.zeros(2, dtype=torch.int8)}, "b": 3}, "has the tensor names of no known network: net.a"),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "has the tensor names of no known network: a, b"),
        ({}, "has the tensor names of no known network: none"),
    ],
)
def test_torch_files_without_a_network(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    refused(message, tmp_path / "a.pt")


# --- our own files ----------------------------------------------------------------------------------------------------


def altered(source, target, spec=None, drop=(), add=(), reshape=()):
    """A copy of one of our files with another header or other tensors."""
    tensors = load_file(source)
    tensors = {key: value for key, value in tensors.items() if key not in drop}
    tensors |= {key: torch.zeros(2) for key in add}
    tensors |= {key: tensors[key][:-1].contiguous() for key in reshape}
    spec = json.dumps(tiny_sit(1).spec.to_dict()) if spec is None else spec
    save_file(tensors, target, {"spec": spec})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not JSON", "Expecting value"),
        ("[1, 2]", "expected an object, got a list"),
        ({"mlp_ratio": float("nan")}, "NaN is not a JSON number"),
        ({"mlp_ratio": float("inf")}, "Infinity is not a JSON number"),
        ({"mlp_ratio": "4"}, "mlp_ratio cannot be '4'"),
        ({"depth": 2.0}, "depth cannot be 2.0"),
        ({"depth": True}, "depth cannot be True"),
        ({"exits": [2.5]}, "exits cannot be [2.5]"),
        ({"parents": 3}, "parents cannot be 3"),
        ({"prediction": "noise"}, "prediction cannot be 'noise'"),
        ({"qk_norm": 1}, "qk_norm cannot be 1"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"heads": 3}, "dim must be a multiple of heads"),
        ({"height": 7}, "latent size must be a positive multiple of the patch size"),
        ({"depth": None}, "depth cannot be None"),
    ],
)
def test_a_bad_spec(tmp_path, own_file, change, message):
    spec = change if isinstance(change, str) else json.dumps(tiny_sit(1).spec.to_dict() | change)
    line = refused(message, altered(own_file, tmp_path / "a.safetensors", spec))
    assert "a.safetensors is not valid" in line


def test_a_spec_without_a_field_and_one_too_deep(tmp_path, own_file):
    spec = tiny_sit(1).spec.to_dict()
    deep = altered(own_file, tmp_path / "deep.safetensors", json.dumps(spec | {"depth": 10**9}))
    refused("tensors, too few for 1000000000 blocks", deep)
    spec.pop("width")
    refused("'width'", altered(own_file, tmp_path / "a.safetensors", json.dumps(spec)))


@pytest.mark.parametrize("options", [{"family": "dit"}, {"heads": 2}, {"exit_layer": 2}])
def test_options_that_our_files_do_not_need(own_file, options):
    ((name, value),) = options.items()
    refused(f"{name}={value!r} does not apply: {own_file} states its own spec", own_file, **options)


def test_tensors_that_do_not_fit_are_named_and_counted(tmp_path, own_file):
    drop = [f"blocks.{i}.attn.proj.bias" for i in range(4)]
    path = altered(own_file, tmp_path / "a.safetensors", drop=drop, add=["stray.weight"], reshape=["final_layer.linear.weight"])
    line = refused("do not fit the network", path)
    assert "4 missing (blocks.0.attn.proj.bias, blocks.1.attn.proj.bias, blocks.2.attn.proj.bias, ...)" in line
    assert "1 unexpected (stray.weight)" in line
    assert "1 mis-shaped (final_layer.linear.weight [15, 32] for [16, 32])" in line


# --- official files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"heads": 2}, "give family='dit' (noise prediction), 'sit' (velocity, time 1 is data) or 'repa'"),
        ({}, {"family": "unet"}, "unknown model family 'unet'; known: dit, sit, repa"),
        ({}, {"family": "dit"}, "has width 48, which is no published size: give the number of attention heads"),
        ({}, {"family": "dit", "heads": 0}, "heads must be a positive integer, got 0"),
        ({}, {"family": "dit", "heads": 5}, "dim must be a multiple of heads, got dim 48 and heads 5"),
        ({}, {"family": "repa", "heads": 2, "exit_layer": 2}, "exit_layer=2 does not apply"),
        ({"pos_embed": torch.zeros(1, 9, 48)}, {}, "differs by 1 from the sine-cosine table of a 3 x 3 grid"),
        ({"pos_embed": torch.full((1, 9, 48), torch.nan)}, {}, "differs by nan from the sine-cosine table"),
        ({"pos_embed": torch.zeros(1, 15, 48)}, {}, "pos_embed in"),
        ({"pos_embed": None}, {}, "lacks pos_embed, from which the size of the network is read"),
        ({"x_embedder.proj.weight": None}, {}, "lacks x_embedder.proj.weight"),
        ({"x_embedder.proj.weight": torch.zeros(48, 16)}, {}, "has shape [48, 16]; expected 4 dimensions"),
        ({"final_layer.linear.weight": torch.zeros(33, 48)}, {}, "has 33 rows, not a multiple of 2^2"),
        ({"blocks.1.mlp.fc2.bias": None}, {}, "1 missing (blocks.1.mlp.fc2.bias)"),
        ({"projectors.0.0.weight": torch.zeros(2, 2)}, {}, "1 unexpected (projectors.0.0.weight)"),
        (
            {"blocks.1.mlp.fc2.bias": torch.zeros(48, dtype=torch.int8)},
            {},
            "has dtype int8; accepted: float64, float32, float16, bfloat16",
        ),
        ({"bn.num_batches_tracked": torch.tensor(3)}, {}, "1 unexpected (bn.num_batches_tracked)"),
        ({"blocks.7.mlp.fc2.bias": torch.zeros(48)}, {}, "unexpected (blocks.7.mlp.fc2.bias)"),
    ],
)
def test_official_files_that_do_not_tell_or_do_not_fit(tmp_path, change, options, message):
    state = {key: value for key, value in (random_state(2) | change).items() if value is not None}
    torch.save(state, tmp_path / "a.pt")
    refused(message, tmp_path / "a.pt", **(options or {"family": "dit", "heads": 2}))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"path_type": "VP"}, "trained with path_type 'VP'; a repa model must have linear or cosine"),
        ({"prediction": "x"}, "trained with prediction 'x'"),
    ],
)
def test_other_interpolants_and_predictions(tmp_path, args, message):
    torch.save({"ema": random_state(3), "args": argparse.Namespace(**args), "steps": 1}, tmp_path / "a.pt")
    refused(message, tmp_path / "a.pt", heads=2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "it states no weak_layer"),
        ({"weak_layer": -1}, "its training arguments give weak_layer -1"),
        ({"weak_layer": True}, "its training arguments give weak_layer True"),
    ],
)
def test_a_branch_head_after_a_block_that_nobody_states(tmp_path, args, said):
    torch.save({"ema": random_state(4, depth=5, mid_layer=True), "args": argparse.Namespace(**args)}, tmp_path / "a.pt")
    refused(f"has an early-exit head (mid_layer), and {said}: give exit_layer", tmp_path / "a.pt", heads=2)


def test_an_exit_after_no_block(tmp_path):
    torch.save(random_state(4, mid_layer=True), tmp_path / "a.pt")
    refused("an early-exit head must follow block 1 to 2, got 4", tmp_path / "a.pt", heads=2, exit_layer=4)


# --- diffusers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder with a transformer and a scheduler."""
    settings = {key: value for key, value in CONFIG.items() if key != "_class_name"}
    diffusers.DiTTransformer2DModel(**settings).save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    diffusers.DDIMScheduler(beta_schedule="linear").save_pretrained(tmp_path / "scheduler")
    return tmp_path


def rewrite(path, **changes):
    values = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not ...}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "SD3Transformer2DModel"}, "describes a SD3Transformer2DModel"),
        ({"norm_type": "ada_norm_single"}, "has norm_type 'ada_norm_single'; a DiT must have 'ada_norm_zero'"),
        ({"activation_fn": "geglu"}, "has activation_fn 'geglu'; a DiT must have 'gelu-approximate'"),
        ({"attention_bias": False}, "has attention_bias False"),
        ({"num_embeds_ada_norm": None}, "needs an integer num_embeds_ada_norm, got None"),
        ({"patch_size": ...}, "needs an integer patch_size, got None"),
        ({"sample_size": 7}, "does not describe a DiT: latent size must be a positive multiple of the patch size 2"),
        ({"num_layers": 3}, "missing (transformer_blocks.2."),
        ({"num_layers": 1}, "unexpected (transformer_blocks.1."),
        ({"out_channels": 4}, "mis-shaped (proj_out_2.weight [32, 48] for [16, 48]"),
        ({"attention_head_dim": 20}, "mis-shaped"),
    ],
)
def test_configurations_that_are_no_dit_or_do_not_fit(folder, change, message):
    rewrite(folder / "transformer" / "config.json", **change)
    refused(message, folder)


@pytest.mark.parametrize(
    "change", [{"beta_schedule": "scaled_linear"}, {"beta_end": 0.012}, {"prediction_type": "v_prediction"}]
)
def test_schedules_that_a_dit_was_not_trained_with(folder, change):
    rewrite(folder / "scheduler" / "scheduler_config.json", **change)
    ((name, value),) = change.items()
    refused(f"scheduler_config.json has {name} {value!r}; a DiT must have", folder)


def test_options_that_a_diffusers_folder_does_not_need(folder):
    refused("family='sit' does not apply", folder, "sit")
    refused("heads=2 does not apply", folder, heads=2)


def test_damaged_diffusers_folders(folder):
    inner = folder / "transformer"
    index = inner / "diffusion_pytorch_model.safetensors.index.json"
    shards = sorted(inner.glob("*.safetensors"))
    original = index.read_text()
    shards[0].rename(inner / "away")
    refused("names the shard", folder, error=FileNotFoundError)
    (inner / "away").rename(shards[0])
    rewrite(index, weight_map={"a": "../outside.safetensors"})
    refused("names the shard '../outside.safetensors'", folder, error=FileNotFoundError)
    rewrite(index, weight_map=[1])
    refused("has no weight_map from tensor names to file names", folder)
    index.write_text(original)
    save_file(load_file(shards[0]) | load_file(shards[1]), shards[1])
    refused("is in two shards of", folder)
    (inner / "config.json").write_text("{")
    refused("config.json is not valid JSON", shards[0])
    (inner / "config.json").write_text("[]")
    refused("config.json must hold a JSON object, got a list", shards[0])
    (inner / "config.json").unlink()
    refused("has diffusers' tensor names, but there is no config.json beside it", shards[0], error=FileNotFoundError)
    for path in inner.iterdir():
        path.unlink()
    (inner / "config.json").write_text(json.dumps(CONFIG))
    refused("has a config.json but no weights", folder, error=FileNotFoundError)
