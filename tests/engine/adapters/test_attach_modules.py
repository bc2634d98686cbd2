"""Transformers whose weights cannot be packed run through their own modules; what comes and goes takes effect.

Every test does the same to two pipelines with equal weights, one plain and one attached, and compares what they draw.
"""

import pytest
import torch
from attached_runs import draw, relative_error
from counted_rows import counted_rows, planned_rows
from tiny_models import randomize
from tiny_sd3 import add_ip_adapter, tiny_components, tiny_pipeline
from torch import nn
from upstream import offloads_groups

import segue
from segue import CFG, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN

SLG = {"skip_guidance_layers": [1, 4], "skip_layer_guidance_scale": 2.0, "skip_layer_guidance_stop": 0.7}
RULE = CFG(4.5) + SkipLayer(2.0, (1, 4), window=Window.steps(2, 3))  # of 4: call i with .04 < i < 2.8, counted from 0
OWN_MODULES = "path: the transformer's own modules, because "
CALL = {"prompt": ["leaf", "bee"], "negative_prompt": "dull", "guidance_scale": 4.5, "num_inference_steps": 4}


class Twins:
    """A plain pipeline and an attached one with equal weights."""

    def __init__(self, kind="sd3.5-medium", **settings):
        self.plain, self.guided = (tiny_pipeline(kind, seed=21, **settings) for _ in range(2))
        self.attachment = segue.attach(self.guided, RULE)

    def both(self, change):
        """Do something to the pipelines."""
        for pipe in (self.plain, self.guided):
            change(pipe)

    def check(self, path, **call):
        """Both draw the same, the attached one on packed weights or for a reason that contains ``path``; returns latents."""
        wanted = draw(self.plain, **(CALL | SLG | call))
        with counted_rows() as rows:
            found = draw(self.guided, **(CALL | call))
        assert relative_error(found, wanted) < ATTACHED_RUN
        assert rows == planned_rows(self.attachment.plan, len(found))
        first = self.attachment.explain().splitlines()[0]
        assert ("packed weights" in first) if path == "packed" else first.startswith(OWN_MODULES) and path in first, first
        return wanted


@pytest.fixture
def twins():
    return Twins()


def add_lora(pipe, name="style", seed=0):
    from peft import LoraConfig

    targets = ["to_q", "to_v", "to_out.0", "add_k_proj", "ff.net.0.proj", "norm1.linear", "linear_1", "context_embedder"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False), name)


def test_lora_comes_and_goes(twins):
    pytest.importorskip("peft")
    plain = twins.check("packed")
    twins.both(add_lora)
    full = twins.check("peft.tuners.lora")
    half = twins.check("peft.tuners.lora", joint_attention_kwargs={"scale": 0.5})
    twins.both(lambda pipe: pipe.set_adapters("style", 0.25))
    quarter = twins.check("peft.tuners.lora")
    twins.both(lambda pipe: pipe.transformer.disable_lora())
    assert torch.equal(twins.check("peft.tuners.lora"), plain)
    twins.both(lambda pipe: pipe.transformer.enable_lora())
    twins.both(lambda pipe: pipe.fuse_lora(components=["transformer"]))
    assert relative_error(twins.check("peft.tuners.lora"), quarter) < 1e-3
    twins.both(lambda pipe: pipe.unload_lora_weights())
    assert relative_error(twins.check("packed"), quarter) < 1e-3
    drawn = (plain, full, half, quarter)
    assert all((a - b).abs().max() > 0.01 for i, a in enumerate(drawn) for b in drawn[:i])


def test_lora_loaded_and_unloaded_by_the_pipeline(twins, tmp_path):
    pytest.importorskip("peft")
    from peft.utils import get_peft_model_state_dict

    source = tiny_pipeline(seed=21)
    add_lora(source, "default")
    source.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(source.transformer))
    plain = twins.check("packed")
    twins.both(lambda pipe: pipe.load_lora_weights(str(tmp_path)))
    assert (twins.check("peft.tuners.lora") - plain).abs().max() > 0.01
    twins.both(lambda pipe: pipe.unload_lora_weights())
    assert torch.equal(twins.check("packed"), plain)


def test_int8_weights_of_torchao(twins):
    quantization = pytest.importorskip("torchao.quantization")
    twins.check("packed")
    twins.both(lambda pipe: quantization.quantize_(pipe.transformer.transformer_blocks, quantization.Int8WeightOnlyConfig()))
    twins.check("transformer_blocks.0")


class Int8Linear(nn.Module):
    """A linear layer with row-wise int8 weights, as quantisation libraries put in the place of the original."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("quantized", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.quantized * self.scale, self.bias)


def test_quantised_linear_modules(twins):
    def quantize(pipe):
        for block in pipe.transformer.transformer_blocks:
            block.attn.to_q, block.ff.net[2] = Int8Linear(block.attn.to_q), Int8Linear(block.ff.net[2])

    plain = twins.check("packed")
    twins.both(quantize)
    assert (twins.check("transformer_blocks.0") - plain).abs().max() > 1e-3


@pytest.mark.parametrize("first", ["offload", "attach"])
def test_sequential_offload(first):
    """On the CPU as on a GPU, weights lie on the meta device except while their own module runs."""
    accelerate = pytest.importorskip("accelerate")
    twins = Twins()
    if first == "offload":
        segue.detach(twins.guided)
    else:
        twins.check("packed")
    twins.both(lambda pipe: accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True))
    assert twins.guided.transformer.proj_out.weight.is_meta
    if first == "offload":
        twins.attachment = segue.attach(twins.guided, RULE)
    twins.check("the transformer has an accelerate hook (AlignDevicesHook)")
    accelerate.hooks.remove_hook_from_submodules(twins.guided.transformer)
    accelerate.hooks.remove_hook_from_submodules(twins.plain.transformer)
    segue.detach(twins.guided)
    assert torch.equal(draw(twins.guided, **CALL), draw(twins.plain, **CALL))


def counting_hook():
    from accelerate.hooks import ModelHook

    class Counter(ModelHook):
        calls = 0

        def pre_forward(self, module, *arguments, **keywords):
            self.calls += 1
            return arguments, keywords

    return Counter()


@pytest.mark.parametrize("first", ["offload", "attach"])
def test_model_offload_fires_once_per_call(twins, first):
    """Model offload hooks the whole transformer; its hook fires, whichever was there first, and survives detaching."""
    hooks = pytest.importorskip("accelerate.hooks")
    transformer, counter = twins.guided.transformer, counting_hook()
    if first == "offload":
        segue.detach(twins.guided)
    hooks.add_hook_to_module(transformer, counter)
    if first == "offload":
        twins.attachment = segue.attach(twins.guided, RULE)
    twins.check("the transformer has an accelerate hook (Counter)")
    assert counter.calls == 4
    segue.detach(twins.guided)
    assert torch.equal(draw(twins.guided, **CALL), draw(twins.plain, **CALL))
    assert counter.calls == 8
    hooks.remove_hook_from_module(transformer)
    assert transformer.forward == type(transformer).forward.__get__(transformer)


def test_model_offload_of_the_pipeline(twins):
    """The pipeline removes and adds its hooks after every run."""
    pytest.importorskip("accelerate")
    twins.both(lambda pipe: pipe.enable_model_cpu_offload(device="cpu"))
    twins.check("the transformer has an accelerate hook (CpuOffload)")
    twins.check("the transformer has an accelerate hook (CpuOffload)")
    twins.both(lambda pipe: pipe.remove_all_hooks())
    twins.check("packed")


@offloads_groups
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["offload", "attach"])
def test_group_offload(twins, kind, first, tmp_path):
    """Groups are offloaded to disk: without its hook a module runs with uninitialised weights.

    That happens to diffusers' own skip-layer guidance where it skips the first block of a group (block 4 of 4 and 5 here), so
    the plain pipeline keeps its weights.  Row-batched branches call every block.
    """
    if first == "offload":
        segue.detach(twins.guided)
    groups = {"num_blocks_per_group": 2} if kind == "block_level" else {}
    here = torch.device("cpu")
    twins.guided.transformer.enable_group_offload(here, here, offload_type=kind, offload_to_disk_path=str(tmp_path), **groups)
    if first == "offload":
        twins.attachment = segue.attach(twins.guided, RULE)
    twins.check("has a GroupOffloadingHook")
    segue.detach(twins.guided)
    assert torch.equal(draw(twins.guided, **CALL), draw(twins.plain, **CALL))


def test_layerwise_casting(twins):
    twins.both(lambda pipe: pipe.transformer.enable_layerwise_casting(torch.bfloat16, torch.float32))
    twins.check("time_text_embed")


def compile_in_place(blocks):
    blocks[3].compile(backend="eager")


def compile_as_wrapper(blocks):
    blocks[3] = torch.compile(blocks[3], backend="eager")


@pytest.mark.parametrize("compile_blocks", [compile_in_place, compile_as_wrapper])
def test_compiled_blocks(twins, compile_blocks):
    torch._dynamo.reset()
    twins.check("packed")
    twins.both(lambda pipe: compile_blocks(pipe.transformer.transformer_blocks))
    twins.check("transformer_blocks.3 is compiled")
    torch._dynamo.reset()


def test_feed_forward_in_chunks(twins):
    twins.both(lambda pipe: pipe.transformer.enable_forward_chunking(1, dim=1))
    twins.check("transformer_blocks.0 runs its feed-forward in chunks")
    twins.both(lambda pipe: pipe.transformer.disable_forward_chunking())
    twins.check("packed")


def test_other_attention_processors(twins):
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    class Louder(JointAttnProcessor2_0):
        def __call__(self, *arguments, **keywords):
            output = super().__call__(*arguments, **keywords)
            return tuple(2 * part for part in output) if isinstance(output, tuple) else 2 * output

    plain = twins.check("packed")
    twins.both(lambda pipe: pipe.transformer.set_attn_processor(Louder()))
    assert (twins.check("transformer_blocks.0.attn.processor is a Louder") - plain).abs().max() > 0.01
    twins.both(lambda pipe: pipe.transformer.set_attn_processor(JointAttnProcessor2_0()))
    assert torch.equal(twins.check("packed"), plain)


def test_weights_that_move_or_change_are_packed_again(twins):
    twins.check("packed")
    twins.both(lambda pipe: pipe.to(torch.float64))
    twins.check("packed")
    twins.both(lambda pipe: pipe.transformer.transformer_blocks[2].attn.to_k.weight.data.mul_(3))
    twins.check("packed")
    twins.both(lambda pipe: setattr(pipe.transformer, "proj_out", nn.Linear(16, 16).double()))
    twins.plain.transformer.proj_out.load_state_dict(twins.guided.transformer.proj_out.state_dict())
    twins.check("packed")


def controlnet_pipeline(seed):
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline

    components = tiny_components(seed=21)
    shared = ("sample_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim")
    shared += ("caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")
    config = components["transformer"].config
    controlnet = SD3ControlNetModel(num_layers=4, **{name: config[name] for name in shared})
    pipe = StableDiffusion3ControlNetPipeline(**components, controlnet=randomize(controlnet, seed))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_controlnet(seed):
    plain, guided = controlnet_pipeline(seed), controlnet_pipeline(seed)
    attachment = segue.attach(guided, CFG(4.5))
    call = CALL | {"control_image": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))}
    drawn = []
    for pipe in (plain, guided):
        with torch.random.fork_rng(), counted_rows() as rows:
            torch.manual_seed(seed)  # encoding the image draws noise
            drawn.append(draw(pipe, **call))
    assert relative_error(drawn[1], drawn[0]) < ATTACHED_RUN
    assert OWN_MODULES + "a ControlNet adds residuals" in attachment.explain()
    controlled = [4] * 4  # the ControlNet's own 4 blocks run on the pipeline's 2 x 2 rows before the transformer's 6
    assert rows == (controlled + [4] * 6) * 4
    unlike = draw(guided, **(call | {"controlnet_conditioning_scale": 0.0}))
    assert relative_error(unlike, drawn[0]) > 0.01


def test_ip_adapter(twins):
    """Image tokens follow their branch; diffusers' own skip-layer pass mixes those of both prompts, so it is left out."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 10, generator=generator)  # negative and positive
    segue.attach(twins.guided, CFG(4.5))
    call = CALL | {"prompt": "leaf", "ip_adapter_image_embeds": images}
    without = draw(twins.plain, **(CALL | {"prompt": "leaf"}))
    twins.both(lambda pipe: add_ip_adapter(pipe.transformer))
    wanted, found = draw(twins.plain, **call), draw(twins.guided, **call)
    assert relative_error(found, wanted) < ATTACHED_RUN
    assert relative_error(wanted, without) > 0.01
    assert OWN_MODULES + "joint_attention_kwargs has 'ip_adapter_image_embeds'" in twins.attachment.explain()
