"""What happens to a pipeline after ``Engine.from_pipe`` takes effect at the next run, by packed weights or by its modules.

Every test does the same to two pipelines with equal weights, one plain and one with an engine, and compares their latents.
"""

import gc
import weakref

import pytest
import torch
from attached_runs import relative_error
from live_runs import NEGATIVE, PROMPTS, RULE, SEEDS, STEPS, Twins, generate, plain_draw
from PIL import ImageChops
from tiny_sd3 import T5_TOKENS, add_ip_adapter, tiny_pipeline, tiny_transformer
from upstream import offloads_groups

import segue
from segue import CFG, Engine
from segue.engine.adapters.live_transformer import execution_device
from segue.kernels.contracts import FP8_STEP
from tests.tolerances import ATTACHED_RUN


@pytest.fixture
def twins():
    return Twins()


def add_lora(pipe, name="style"):
    from peft import LoraConfig

    targets = ["to_q", "to_v", "to_out.0", "add_k_proj", "ff.net.0.proj", "norm1.linear", "linear_1", "context_embedder"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False), name)


@pytest.fixture
def lora_file(tmp_path):
    """The folder of a saved LoRA."""
    pytest.importorskip("peft")
    from peft.utils import get_peft_model_state_dict

    source = tiny_pipeline(seed=21)
    add_lora(source, "default")
    source.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(source.transformer))
    return str(tmp_path)


def test_lora_loaded_and_unloaded_by_the_pipeline(twins, lora_file):
    plain = twins.check("packed")
    twins.both(lambda pipe: pipe.load_lora_weights(lora_file))
    assert relative_error(twins.check("peft.tuners.lora"), plain) > 0.01
    twins.both(lambda pipe: pipe.unload_lora_weights())
    assert torch.equal(twins.check("packed"), plain)


def test_lora_scaled_disabled_fused_and_unloaded(twins):
    pytest.importorskip("peft")
    plain = twins.check("packed")
    twins.both(add_lora)
    full = twins.check("peft.tuners.lora")
    twins.both(lambda pipe: pipe.set_adapters("style", 0.25))
    quarter = twins.check("peft.tuners.lora")
    twins.both(lambda pipe: pipe.transformer.disable_lora())
    assert relative_error(twins.check("peft.tuners.lora"), plain) < ATTACHED_RUN
    twins.both(lambda pipe: pipe.transformer.enable_lora())
    twins.both(lambda pipe: pipe.fuse_lora(components=["transformer"]))
    assert relative_error(twins.check("peft.tuners.lora"), quarter) < 1e-3  # fusing rounds every weight once
    twins.both(lambda pipe: pipe.unload_lora_weights())
    assert relative_error(twins.check("packed"), quarter) < 1e-3
    drawn = (plain, full, quarter)
    assert all(relative_error(a, b) > 0.01 for i, a in enumerate(drawn) for b in drawn[:i])


def test_lora_fused_and_unloaded_without_a_run_in_between(twins, lora_file):
    plain = twins.check("packed")
    twins.both(lambda pipe: pipe.load_lora_weights(lora_file))
    twins.both(lambda pipe: pipe.fuse_lora(components=["transformer"]))
    twins.both(lambda pipe: pipe.unload_lora_weights())
    assert relative_error(twins.check("packed"), plain) > 0.01


def test_lora_on_a_loaded_folder(lora_file, tmp_path):
    pipe = tiny_pipeline(seed=21)
    pipe.save_pretrained(tmp_path / "pipeline")
    engine = Engine.from_pretrained(tmp_path / "pipeline", device="cpu")
    plain = generate(engine).latents
    for holder in (engine.pipe, pipe):
        holder.load_lora_weights(lora_file)
    found = generate(engine).latents
    assert relative_error(found, plain_draw(pipe)) < ATTACHED_RUN < relative_error(found, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_as_if_the_engine_had_been_built_with_it(dtype):
    changed, built = tiny_pipeline(seed=21), tiny_pipeline(seed=21).to(dtype)
    engine = Engine.from_pipe(changed)
    before = generate(engine).latents
    changed.to(dtype)
    after = generate(engine).latents
    assert engine.dtype == dtype
    assert torch.equal(after, generate(Engine.from_pipe(built)).latents)
    assert not torch.equal(after, before)


def test_weights_that_change_or_are_replaced(twins):
    before = twins.check("packed")
    twins.both(lambda pipe: pipe.transformer.transformer_blocks[2].attn.to_k.weight.data.mul_(3))
    assert relative_error(twins.check("packed"), before) > 0.01
    twins.both(lambda pipe: setattr(pipe.transformer, "proj_out", torch.nn.Linear(16, 16)))
    twins.plain.transformer.proj_out.load_state_dict(twins.live.transformer.proj_out.state_dict())
    twins.check("packed")


def test_another_transformer_with_another_depth(twins):
    twins.check("packed")
    twins.both(lambda pipe: setattr(pipe, "transformer", tiny_transformer("sd3", seed=5, num_layers=5)))
    assert twins.engine.plan(RULE, steps=STEPS).cost.blocks == Engine.from_pipe(twins.live).plan(RULE, steps=STEPS).cost.blocks
    twins.check("packed")


def test_int8_weights_of_torchao(twins):
    quantization = pytest.importorskip("torchao.quantization")
    twins.check("packed")
    twins.both(lambda pipe: quantization.quantize_(pipe.transformer.transformer_blocks, quantization.Int8WeightOnlyConfig()))
    twins.check("transformer_blocks.0")


def test_attention_processors(twins):
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    plain = twins.check("packed")
    twins.both(lambda pipe: add_ip_adapter(pipe.transformer))  # without an image: the prompt alone
    twins.check("SD3IPAdapterJointAttnProcessor2_0")
    twins.both(lambda pipe: setattr(pipe.transformer, "image_proj", None))
    twins.both(lambda pipe: pipe.transformer.set_attn_processor(JointAttnProcessor2_0()))
    assert torch.equal(twins.check("packed"), plain)


def test_compiled_blocks(twins):
    torch._dynamo.reset()
    twins.both(lambda pipe: pipe.transformer.transformer_blocks[3].compile(backend="eager"))
    twins.check("transformer_blocks.3 is compiled")
    torch._dynamo.reset()


def test_sequential_offload_of_the_transformer(twins):
    """On the CPU as on a GPU, weights lie on the meta device except while their own module runs."""
    accelerate = pytest.importorskip("accelerate")
    plain = twins.check("packed")
    twins.both(lambda pipe: accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True))
    assert twins.live.transformer.proj_out.weight.is_meta
    assert execution_device(twins.live.transformer) == torch.device("cpu")
    twins.check("the transformer has an accelerate hook (AlignDevicesHook)")
    twins.both(lambda pipe: accelerate.hooks.remove_hook_from_submodules(pipe.transformer))
    assert relative_error(twins.check("pos_embed has hooks or a replaced forward"), plain) < ATTACHED_RUN


def test_pictures_from_offloaded_transformer_and_vae():
    accelerate = pytest.importorskip("accelerate")
    engine = Engine.from_pipe(tiny_pipeline(seed=21))
    embeddings = engine.encode(PROMPTS, NEGATIVE, max_sequence_length=T5_TOKENS)
    options = {
        "guidance": RULE,
        "steps": STEPS,
        "seeds": SEEDS,
        "image": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
    }
    expected = engine.generate(embeddings, **options)
    for part in (engine.pipe.transformer, engine.pipe.vae):
        accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    assert engine.pipe.vae.decoder.conv_in.weight.is_meta
    run = engine.generate(embeddings, **options)
    assert relative_error(run.latents, expected.latents) < ATTACHED_RUN
    for image, other in zip(run.images, expected.images, strict=True):  # a rounding may fall to the other side
        assert max(high for _, high in ImageChops.difference(image, other).getextrema()) <= 1


def test_model_offload_of_the_pipeline(twins, monkeypatch):
    """The hook that brings the transformer's weights fires for every call, and the pipeline's hooks are freed after a run."""
    hooks = pytest.importorskip("accelerate.hooks")
    fired, before = [], hooks.CpuOffload.pre_forward

    def noted(hook, module, *arguments, **keywords):
        fired.append(module)
        return before(hook, module, *arguments, **keywords)

    twins.both(lambda pipe: pipe.enable_model_cpu_offload(device="cpu"))
    twins.check("the transformer has an accelerate hook (CpuOffload)")
    monkeypatch.setattr(hooks.CpuOffload, "pre_forward", noted)
    generate(twins.engine)
    assert fired.count(twins.live.transformer) == STEPS
    assert fired.count(twins.live.vae) == 1
    twins.check("the transformer has an accelerate hook (CpuOffload)")
    twins.both(lambda pipe: pipe.remove_all_hooks())
    twins.check("packed")


@offloads_groups
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(twins, kind, tmp_path):
    """Groups are offloaded to disk: a module whose hook does not fire runs with uninitialised weights.

    The plain pipeline keeps its weights, as diffusers' own skip-layer guidance may skip the block that brings a group.
    """
    groups, here = {"num_blocks_per_group": 2} if kind == "block_level" else {}, torch.device("cpu")
    twins.check("packed")
    twins.live.transformer.enable_group_offload(here, here, offload_type=kind, offload_to_disk_path=str(tmp_path), **groups)
    twins.check("has a GroupOffloadingHook")
    twins.check("has a GroupOffloadingHook")


def test_layerwise_casting(twins):
    twins.both(lambda pipe: pipe.transformer.enable_layerwise_casting(torch.bfloat16, torch.float32))
    twins.check("time_text_embed")


def test_an_attachment_and_an_engine_on_one_pipeline(twins):
    segue.attach(twins.live, CFG(2.0))
    twins.check("packed")
    with_rule = plain_draw(twins.live, skip_guidance_layers=None)
    segue.detach(twins.live)  # gives the weights storages of their own: the engine packs them again
    assert relative_error(with_rule, plain_draw(twins.plain, guidance_scale=2.0, skip_guidance_layers=None)) < ATTACHED_RUN
    twins.check("packed")


def test_what_was_built_for_the_weights_before_is_dropped(twins):
    """Programs hold rows, rows hold the network, and graphs hold their addresses."""
    twins.check("packed")
    twins.live.to(torch.float64)
    old = [weakref.ref(item) for item in (twins.engine.models["main"], *twins.engine._programs.values())]
    assert len(old) == 2 and "the next one starts anew" in twins.engine.explain()
    twins.engine.refresh()
    gc.collect()
    assert [reference() for reference in old] == [None, None]
    twins.live.to(torch.float32)
    twins.check("packed")
    kept = list(twins.engine._programs.values())
    generate(twins.engine)
    assert list(twins.engine._programs.values()) == kept  # nothing happened to the weights: nothing is built again
    handle = twins.live.transformer.proj_out.register_forward_hook(lambda *_: None)
    twins.check("proj_out has hooks")
    assert not set(map(id, kept)) & set(map(id, twins.engine._programs.values()))
    handle.remove()
    twins.check("packed")


def test_a_foreign_loop_sees_changes_between_its_runs(twins):
    pytest.importorskip("peft")
    engine = twins.engine
    embeddings = engine.encode(PROMPTS, NEGATIVE, max_sequence_length=T5_TOKENS)
    levels = engine.plan(RULE, steps=STEPS).schedule.sigmas
    model = engine.denoiser(RULE, embeddings, schedule=levels)

    def loop():
        x = engine.draw_noise(engine.plan(RULE, steps=STEPS), SEEDS)
        for s, t in zip(levels, levels[1:], strict=False):
            x = x + (x - model(x, torch.full((2,), s))) / s * (t - s)
        return x

    plain = loop()
    assert relative_error(plain, plain_draw(twins.plain)) < ATTACHED_RUN
    twins.both(add_lora)
    changed = loop()
    assert relative_error(changed, plain_draw(twins.plain)) < ATTACHED_RUN < relative_error(changed, plain)
    twins.both(lambda pipe: pipe.set_adapters("style", 0.25))  # the same modules: embedded times and prompts are new
    assert relative_error(loop(), plain_draw(twins.plain)) < ATTACHED_RUN
    twins.both(lambda pipe: pipe.unload_lora_weights())
    assert torch.equal(loop(), plain)


def test_a_foreign_loop_that_starts_lower_sees_another_transformer():
    pipe = tiny_pipeline(seed=21)
    engine = Engine.from_pipe(pipe)
    embeddings = engine.encode(PROMPTS, NEGATIVE, max_sequence_length=T5_TOKENS)
    x, high, low = torch.ones(2, 4, 8, 8), torch.full((2,), 0.9), torch.full((2,), 0.5)
    model = engine.denoiser(CFG(3.0), embeddings)
    model(x, high)
    before = model(x, low)
    model(x, high)
    pipe.transformer = tiny_transformer(seed=99)
    found = model(x, low)
    assert torch.equal(found, engine.denoiser(CFG(3.0), embeddings)(x, low))
    assert relative_error(found, before) > 0.01


def test_weights_in_fp8_follow_those_of_the_pipeline():
    pytest.importorskip("peft")
    pipe, built = tiny_pipeline(seed=21), tiny_pipeline(seed=21)
    engine = Engine.from_pipe(pipe, linears="fp8")
    before = generate(engine).latents
    kept = list(engine._programs.values())
    assert torch.equal(generate(engine).latents, before) and list(engine._programs.values()) == kept
    add_lora(pipe)
    with pytest.raises(ValueError, match=r"linears='fp8' needs packed weights, and time_text_embed.* is a peft\.tuners"):
        generate(engine)
    pipe.unload_lora_weights()
    assert torch.equal(generate(engine).latents, before)
    for each in (pipe, built):  # at the same addresses
        each.transformer.transformer_blocks[2].ff.net[2].weight.data.mul_(2)
    after = generate(engine).latents
    assert torch.equal(after, generate(Engine.from_pipe(built, linears="fp8")).latents) and not torch.equal(after, before)


CHANGES = {
    "signs": torch.Tensor.neg,
    "rows": lambda weight: weight.flip(0),
    "columns": lambda weight: weight.flip(1),
    "transposed": torch.Tensor.t,
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_in_fp8_follow_a_change_that_keeps_their_norms(change):
    pipe = tiny_pipeline(seed=21)
    engine = Engine.from_pipe(pipe, linears="fp8")
    before = generate(engine).latents
    weight = pipe.transformer.transformer_blocks[2].attn.to_out[0].weight.data
    weight.copy_(CHANGES[change](weight).clone())
    after = generate(engine).latents
    assert torch.equal(after, generate(Engine.from_pipe(pipe, linears="fp8")).latents) and not torch.equal(after, before)


def test_a_folder_in_fp8_holds_no_second_copy(tmp_path):
    pipe = tiny_pipeline(seed=21)
    pipe.save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, device="cpu", linears="fp8")
    assert {parameter.device.type for parameter in engine.pipe.transformer.parameters()} == {"meta"}
    run = generate(engine)
    assert len(run.images) == len(PROMPTS)
    # a difference of roundings in the loaded encoders may tip a value to the next of fp8, whose steps are 2^-4
    assert relative_error(run.latents, generate(Engine.from_pipe(pipe, linears="fp8")).latents) < FP8_STEP


@pytest.mark.gpu
def test_graphs_follow_the_weights():
    """The same latents with and without graphs: moved from the CPU, with a LoRA and without it again."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    drawn = []
    for graphs in (None, False):
        pipe = tiny_pipeline(seed=21)
        engine = Engine.from_pipe(pipe, graphs=graphs)
        pipe.to("cuda")
        latents = [generate(engine).latents]
        assert ("graph for" in engine.explain()) == (graphs is None)
        add_lora(pipe)
        latents.append(generate(engine).latents)
        pipe.unload_lora_weights()
        drawn.append([*latents, generate(engine).latents])
    assert all(relative_error(captured, eager) < ATTACHED_RUN for captured, eager in zip(*drawn, strict=True))
    assert torch.equal(drawn[0][0], drawn[0][2]) and relative_error(drawn[0][1], drawn[0][0]) > 0.01
