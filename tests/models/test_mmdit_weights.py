"""Weights of an MMDiT: shared with a live diffusers module, and loaded from diffusers folders and published single files."""

import json
import re

import pytest
import torch
from full_depth_sd3 import diffusers_sd3, reference, sd3_inputs
from safetensors.torch import load_file, save_file
from torch import nn

from segue.models.mmdit import MMDiT, TextCondition
from segue.models.mmdit_diffusers import from_diffusers, packing_obstacle, unshared
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.weights import load_model, load_network

diffusers = pytest.importorskip("diffusers")

# Absolute, on outputs of unit size: few blocks of fp32 products and norms, each rounding to 6e-8, in another order.
PARITY = 1e-5


def small_sd3(seed: int = 0, **changes):
    """Four blocks of SD3.5-medium: the first two with dual attention."""
    changes = {"num_layers": 4, "dual_attention_layers": (0, 1)} | changes
    return diffusers_sd3("sd3.5-medium", seed, **changes)


def output(model: MMDiT, inputs, skip_layers=()):
    with torch.no_grad():
        return model(inputs.x, inputs.time, TextCondition(inputs.contexts[0], inputs.pooled[0]), skip_layers)


def storages(*modules: nn.Module) -> dict[int, int]:
    """Bytes of every distinct storage that the modules hold."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


def identities(module: nn.Module) -> dict[str, tuple]:
    return {name: (id(value), value.shape, value.requires_grad, type(value)) for name, value in module.named_parameters()}


# --- sharing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharing_adds_no_byte_and_leaves_the_module_as_it_was(dtype):
    theirs, inputs = small_sd3().to(dtype), sd3_inputs(1).to(dtype)
    weights = {name: value.clone() for name, value in theirs.state_dict().items()}
    before, modules, expected = sum(storages(theirs).values()), identities(theirs), reference(theirs, inputs)
    ours = from_diffusers(theirs)
    assert storages(ours).items() <= storages(theirs).items()
    assert sum(storages(theirs, ours).values()) == before
    assert identities(theirs) == modules
    assert all(torch.equal(value, weights[name]) for name, value in theirs.state_dict().items())
    assert torch.equal(reference(theirs, inputs), expected)
    assert unshared(ours, theirs) == ()


def test_the_overhead_of_packing_is_one_matrix(monkeypatch):
    """At no time are more bytes alive than the module's own and one packed QKV projection."""
    theirs = small_sd3()
    own, largest, peaks = sum(storages(theirs).values()), 3 * 48 * 48 * 4, []
    empty = torch.empty

    def counted(*args, **kwargs):
        made = empty(*args, **kwargs)
        if made.device.type == "cpu":
            peaks.append(sum(storages(theirs).values()) + made.untyped_storage().nbytes())
        return made

    monkeypatch.setattr(torch, "empty", counted)
    from_diffusers(theirs)
    assert len(peaks) == 2 * (4 + 4 + 2)  # weight and bias of both streams and of the dual attention
    assert max(peaks) <= own + largest


def test_changes_in_place_reach_both():
    """As a fused LoRA changes weights: every tensor of the module is one of ours."""
    theirs, inputs = small_sd3(), sd3_inputs(2)
    ours = from_diffusers(theirs)
    before = output(ours, inputs)
    with torch.no_grad():
        for i, parameter in enumerate(theirs.parameters()):
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    after = output(ours, inputs)
    assert (after - before).abs().max() > 0.1
    assert (after - reference(theirs, inputs)).abs().max() <= PARITY


def test_sharing_twice_uses_the_packed_storage():
    theirs = small_sd3()
    first = from_diffusers(theirs)
    second = from_diffusers(theirs)
    assert storages(first) == storages(second)
    assert unshared(first, theirs) == ()


def test_a_copy_leaves_the_module_alone():
    theirs, inputs = small_sd3(), sd3_inputs(3)
    before = storages(theirs)
    ours = from_diffusers(theirs, share=False)
    assert storages(theirs) == before
    assert not storages(ours).keys() & before.keys()
    assert (output(ours, inputs) - reference(theirs, inputs)).abs().max() <= PARITY
    assert len(unshared(ours, theirs)) == len(theirs.state_dict())


def test_weights_that_left_are_named():
    theirs = small_sd3()
    ours = from_diffusers(theirs)
    block = theirs.transformer_blocks[2]
    block.attn.to_k.weight.data = block.attn.to_k.weight.data.clone()
    block.ff.net[2].bias = nn.Parameter(block.ff.net[2].bias.data.clone())
    assert sorted(unshared(ours, theirs)) == ["transformer_blocks.2.attn.to_k.weight", "transformer_blocks.2.ff.net.2.bias"]
    theirs.to(torch.bfloat16)
    assert len(unshared(ours, theirs)) == len(theirs.state_dict())


def test_a_shared_module_can_be_saved_and_loaded(tmp_path):
    theirs, inputs = small_sd3(), sd3_inputs(4)
    expected = reference(theirs, inputs)
    from_diffusers(theirs)
    theirs.save_pretrained(tmp_path)
    again = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(reference(again, inputs), expected)


# --- what cannot be packed --------------------------------------------------------------------------------------------


def with_lora(module):
    peft = pytest.importorskip("peft")
    module.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    return module


def quantised(module):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    return module


def offloaded(module):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(module, execution_device=torch.device("cpu"))


def fused(module):
    module.fuse_qkv_projections()
    return module


def other_processor(module):
    class Custom(type(module.transformer_blocks[0].attn.processor)):
        pass

    module.transformer_blocks[1].attn2.set_processor(Custom())
    return module


def hooked(module):
    module.transformer_blocks[3].ff.register_forward_hook(lambda *_: None)
    return module


def cast_layers(module):
    module.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return module


def half_cast(module):
    module.transformer_blocks[0].to(torch.bfloat16)
    return module


def extended(module):
    module.extra = nn.Linear(2, 2)
    return module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_lora, r"attn\.to_q is a peft\..*Linear"),
        (quantised, r"weight is a \w*Int8"),
        (offloaded, "hooks or a replaced forward"),
        (fused, "is a FusedJointAttnProcessor2_0"),
        (other_processor, r"transformer_blocks\.1\.attn2\.processor is a Custom"),
        (hooked, r"transformer_blocks\.3\.ff has hooks"),
        (cast_layers, "hooks or a replaced forward"),
        (half_cast, "2 different dtypes"),
        (extended, r"holds extra\.bias, which the network does not have"),
        (lambda module: module.to("meta"), "on meta"),
        (lambda module: module.to(torch.float8_e4m3fn), "float8_e4m3fn on cpu"),
    ],
    ids=["lora", "int8", "offload", "fused", "processor", "hook", "casting", "mixed", "extra", "meta", "fp8"],
)
def test_a_transformer_that_cannot_be_packed_says_why_and_is_not_touched(change, message):
    theirs = change(small_sd3())
    before = {name: value.data_ptr() for name, value in theirs.named_parameters() if type(value.data) is torch.Tensor}
    assert re.search(message, packing_obstacle(theirs))
    with pytest.raises(ValueError, match=f"cannot be packed: .*{message}"):
        from_diffusers(theirs)
    assert before == {name: value.data_ptr() for name, value in theirs.named_parameters() if name in before}


def test_another_class_is_refused():
    with pytest.raises(TypeError, match="an SD3Transformer2DModel is needed, got Linear"):
        packing_obstacle(nn.Linear(2, 2))


# --- diffusers folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bare", "pipeline", "sharded"])
def test_a_diffusers_folder(tmp_path, kind):
    theirs, inputs = small_sd3(5), sd3_inputs(5)
    folder = tmp_path / "transformer" if kind == "pipeline" else tmp_path
    theirs.save_pretrained(folder, max_shard_size="200KB" if kind == "sharded" else "1GB")
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (kind == "sharded")
    ours, report = load_network(tmp_path)
    assert (ours.spec.depth, ours.spec.heads, ours.spec.dual_layers, ours.spec.qk_norm) == (4, 2, (0, 1), True)
    assert report.loaded == len(ours.state_dict())
    assert not report.ignored
    assert (output(ours, inputs, (1, 2)) - reference(theirs, inputs, 0, (1, 2))).abs().max() <= PARITY
    model, others = load_model(tmp_path)
    assert isinstance(model, MMDiT)
    assert not others


def test_a_diffusers_folder_in_half_precision_stays_so(tmp_path):
    small_sd3().to(torch.float16).save_pretrained(tmp_path)
    ours, _ = load_network(tmp_path)
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float16}


# --- single files in the published layout -----------------------------------------------------------------------------

SINGLE = {
    "sd3": MMDiTSpec("sd3", 4, 12, 12, 2, 128, 3, 2, text_dim=24, pooled_dim=20, position_size=6),
    "sd3.5-medium": MMDiTSpec(
        "m", 4, 12, 12, 2, 96, 4, 3, text_dim=24, pooled_dim=20, position_size=6, dual_layers=(0, 2), qk_norm=True
    ),
    "sd3.5-large": MMDiTSpec("l", 4, 12, 12, 2, 80, 3, 2, text_dim=24, pooled_dim=20, position_size=6, qk_norm=True),
}
OTHER_NETWORKS = {
    "first_stage_model.decoder.conv_in.weight": torch.zeros(2, 2, 3, 3),
    "text_encoders.t5xxl.transformer.shared.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
    "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": torch.arange(3),
}


def published_tensors(spec: MMDiTSpec, seed: int = 6) -> dict[str, torch.Tensor]:
    """Random tensors under the names and in the shapes of Stability's files, whose names are those of our network."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in MMDiT(spec).state_dict().items():
        fan_in = value[0].numel() if value.dim() == 2 or value.dim() == 4 else 25
        tensors[name] = torch.randn(value.shape, generator=generator) / fan_in**0.5 + (".ln_" in name)
    return tensors


def by_diffusers(spec: MMDiTSpec, tensors):
    """The same file as diffusers itself converts and runs it: the oracle of names, packing and orders."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    model = diffusers.SD3Transformer2DModel(
        sample_size=spec.height,
        in_channels=spec.channels,
        out_channels=spec.channels,
        num_layers=spec.depth,
        num_attention_heads=spec.heads,
        attention_head_dim=spec.head_dim,
        joint_attention_dim=spec.text_dim,
        caption_projection_dim=spec.dim,
        pooled_projection_dim=spec.pooled_dim,
        pos_embed_max_size=spec.position_size,
        dual_attention_layers=spec.dual_layers,
        qk_norm="rms_norm" if spec.qk_norm else None,
    )
    model.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors)))
    return model.eval()


@pytest.mark.parametrize("whole", [True, False], ids=["pipeline file", "transformer file"])
@pytest.mark.parametrize("kind", SINGLE)
def test_a_published_single_file(tmp_path, kind, whole):
    spec, inputs = SINGLE[kind], sd3_inputs(7, 6, 10)
    tensors = published_tensors(spec)
    stored = {f"model.diffusion_model.{name}": value for name, value in tensors.items()} | OTHER_NETWORKS if whole else tensors
    save_file(stored, tmp_path / "file.safetensors")
    ours, report = load_network(tmp_path / "file.safetensors")
    sizes = ("channels", "height", "width", "dim", "depth", "heads", "text_dim", "pooled_dim", "position_size", "dual_layers")
    for name in (*sizes, "qk_norm", "mlp_dim"):
        assert getattr(ours.spec, name) == getattr(spec, name), name
    assert report.loaded == len(tensors)
    assert sorted(report.ignored) == sorted(OTHER_NETWORKS if whole else ())
    if whole:
        assert "a tensor of a text encoder: text_encoders" in str(report)
    assert (output(ours, inputs) - reference(by_diffusers(spec, tensors), inputs)).abs().max() <= PARITY


# --- bad checkpoints --------------------------------------------------------------------------------------------------


def test_a_checkpoint_must_fit_exactly(tmp_path):
    tensors, path = published_tensors(SINGLE["sd3.5-medium"]), tmp_path / "file.safetensors"
    name = "joint_blocks.1.context_block.attn.qkv.weight"
    for changed, message in [
        ({k: v for k, v in tensors.items() if k != name}, f"1 missing .{name}"),
        (tensors | {"joint_blocks.1.x_block.attn2.ln_z.weight": torch.zeros(3)}, "attn2"),
        (tensors | {"extra": torch.zeros(3)}, "1 unexpected .extra"),
        (tensors | {name: torch.zeros(288, 95)}, rf"1 mis-shaped .{name} \[288, 95\] for \[288, 96\]"),
        (tensors | {"pos_embed": torch.zeros(1, 35, 96)}, "35 positions"),
        ({k: v for k, v in tensors.items() if not k.startswith("x_embedder")}, r"lacks x_embedder\.proj\.weight"),
    ]:
        save_file(changed, path)
        with pytest.raises(ValueError, match=message):
            load_network(path)


def test_hints_that_do_not_apply_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    save_file(published_tensors(SINGLE["sd3.5-large"]), path)
    for hints, message in [({"family": "sit"}, "is an SD3"), ({"exit_layer": 2}, "is an SD3"), ({"heads": 4}, "head width")]:
        with pytest.raises(ValueError, match=f"does not apply: .*{message}"):
            load_network(path, **hints)
    spec = MMDiTSpec("odd", 4, 12, 12, 2, 96, 2, 3, text_dim=24, pooled_dim=20, position_size=6)
    save_file(published_tensors(spec), path)
    with pytest.raises(ValueError, match="width 96, not a multiple of 64: give the number of attention heads"):
        load_network(path)
    assert load_network(path, heads=3)[0].spec.heads == 3


def test_a_bad_folder_is_refused_in_one_sentence(tmp_path):
    theirs = small_sd3(num_layers=2)
    theirs.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "diffusion_pytorch_model.safetensors"
    good = json.loads(config.read_text())
    for changes, message in [
        ({"_class_name": "FluxTransformer2DModel"}, "describes a FluxTransformer2DModel"),
        ({"qk_norm": "layer_norm"}, "qk_norm must be None or 'rms_norm', got 'layer_norm'"),
        ({"caption_projection_dim": 40}, "caption_projection_dim must equal the width 48, got 40"),
        ({"num_layers": "two"}, "num_layers"),
        ({"dual_attention_layers": None}, "dual_attention_layers"),
        ({"num_layers": 3}, "missing"),
    ]:
        config.write_text(json.dumps(good | changes))
        with pytest.raises(ValueError, match=message):
            load_network(tmp_path)
    config.write_text(json.dumps(good))
    tensors = load_file(weights)
    del tensors["transformer_blocks.1.attn.add_k_proj.bias"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"1 missing .transformer_blocks\.1\.attn\.add_k_proj\.bias"):
        load_network(tmp_path)
    weights.rename(tmp_path / "alone.safetensors")
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json beside it"):
        load_network(tmp_path / "alone.safetensors")
