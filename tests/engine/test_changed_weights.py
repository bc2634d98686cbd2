"""Weights that change in the middle of a run act from the next call on, also where a run computes with them only once."""

import copy
from functools import cache

import pytest
import torch
from attached_runs import draw, relative_error
from live_runs import MODULES, NEGATIVE, PROMPTS, SEEDS, generators
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import APG, CFG, Engine, SkipLayer
from tests.tolerances import ATTACHED_RUN

RULE, STEPS, AT = CFG(4.5), 3, 1  # the change happens between call 1 and call 2, counted from 1
SMALL = {"num_layers": 3, "dual_attention_layers": (0,)}
TARGETS = ["to_q", "norm1.linear", "linear_1", "context_embedder"]


def in_place(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.25)


def through_data(network):
    """As EMA weights are copied in, and LoRA is fused."""
    for parameter in network.parameters():
        parameter.data.mul_(1.25)


def loaded(network):
    network.load_state_dict({name: 1.25 * tensor for name, tensor in network.state_dict().items()})


def other_storages(network):
    for parameter in network.parameters():
        parameter.data = 1.25 * parameter.data


def other_parameters(network):
    network.load_state_dict({name: 1.25 * tensor for name, tensor in network.state_dict().items()}, assign=True)


CHANGES = [in_place, through_data, loaded, other_storages, other_parameters]


@pytest.fixture(scope="module", autouse=True)
def _peft():
    pytest.importorskip("peft")


# --- networks of class labels, by an engine that holds them --------------------------------------------------------------


def euler(denoiser, x, s, t):
    return x + (t - s) * (x - denoiser(x, torch.full((len(x),), s))) / s


@pytest.mark.parametrize(("change", "heads"), [*((change, {}) for change in CHANGES), (through_data, {"out_channels": 8})])
def test_an_engine_follows_its_network(change, heads):
    """In a callback, and under a denoiser: the oracle asks an engine of its own for every call."""
    rule, labels = CFG(3.0), [0, 4]
    network = tiny_sit(depth=2, exits=(), **heads)
    engine = Engine(copy.deepcopy(network), device="cpu")
    levels = engine.plan(rule, steps=STEPS).schedule.sigmas
    start = engine.draw_noise(engine.plan(rule), SEEDS)
    denoiser = engine.denoiser(rule, labels, schedule=levels)
    wanted = found = start
    for call, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
        if call == AT:
            change(network)
            change(engine.models["main"])
        wanted = euler(Engine(copy.deepcopy(network), device="cpu").denoiser(rule, labels), wanted, s, t)
        found = euler(denoiser, found, s, t)
    assert relative_error(found, wanted) < ATTACHED_RUN
    again = Engine(tiny_sit(depth=2, exits=(), **heads), device="cpu")
    callback = lambda info: change(again.models["main"]) if info.call + 1 == AT else None
    drawn = again.sample(labels, rule, noise=start, seeds=SEEDS, steps=STEPS, callback=callback).latents
    assert relative_error(drawn, wanted) < ATTACHED_RUN


def test_a_position_table_may_be_replaced_between_runs():
    pipe, other = (tiny_pipeline(seed=21, **SMALL) for _ in range(2))
    engine = Engine.from_pipe(pipe)
    embeddings = engine.encode(PROMPTS, NEGATIVE, max_sequence_length=T5_TOKENS)
    before = engine.sample(embeddings, seeds=SEEDS, steps=1, height=6, width=6).latents
    for changed in (pipe, other):
        changed.transformer.pos_embed.pos_embed.mul_(2)
    found = engine.sample(embeddings, seeds=SEEDS, steps=1, height=6, width=6).latents
    wanted = Engine.from_pipe(other).sample(embeddings, seeds=SEEDS, steps=1, height=6, width=6).latents
    assert torch.equal(found, wanted) and not torch.equal(found, before)


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "x_embedder.proj", "final_layer.linear"])
def test_an_adapter_that_comes_later_is_refused(name):
    """The kernels would use the weight inside it alone."""
    from peft import LoraConfig, inject_adapter_in_model

    engine = Engine(tiny_sit(depth=2, exits=()), device="cpu")
    engine.sample([0], steps=1, seeds=0)
    inject_adapter_in_model(LoraConfig(target_modules=[name]), engine.models["main"])
    with pytest.raises(ValueError, match=rf"{name} is a peft.* merge it first"):
        engine.sample([0], steps=1, seeds=0)


# --- live pipelines: the oracle is the plain pipeline with the same change in its own callback --------------------------


def add_lora(pipe, name="style", seed=0):
    from peft import LoraConfig

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False)
        pipe.transformer.add_adapter(config, name)


def with_lora(pipe):
    add_lora(pipe)
    add_lora(pipe, "second", seed=1)
    pipe.set_adapters("style")


def scaled_and_fused(pipe):
    pipe.set_adapters("style", 0.25)
    pipe.fuse_lora(components=["transformer"])


LORA_CHANGES = {
    "switched": lambda pipe: pipe.set_adapters("second"),
    "scaled": lambda pipe: pipe.set_adapters(["style", "second"], [0.25, 2.0]),
    "fused": scaled_and_fused,
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
}


def at_step(change, pipe):
    """A callback for diffusers' loop."""

    def callback(_, step, timestep, tensors):
        if step + 1 == AT:
            change(pipe)
        return tensors

    return {"callback_on_step_end": callback}


def drawn_by(way, pipe, change, rule=RULE):
    """The latents of a run, by the plain pipeline (None), an attachment, an engine, or a denoiser; ``change`` at AT."""
    if way in ("plain", "attach"):
        if way == "attach":
            segue.attach(pipe, rule)
        call = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": 4.5, "num_inference_steps": STEPS}
        return draw(pipe, generator=generators, **call, **at_step(change, pipe))
    engine = Engine.from_pipe(pipe)
    embeddings = engine.encode(PROMPTS, NEGATIVE, max_sequence_length=T5_TOKENS)
    if way in ("engine", "parity"):
        numerics = "segue" if way == "engine" else "diffusers"
        callback = lambda info: change(pipe) if info.call + 1 == AT else None
        return engine.sample(embeddings, rule, steps=STEPS, seeds=SEEDS, callback=callback, numerics=numerics).latents
    plan = engine.plan(rule, steps=STEPS)
    denoiser, x = engine.denoiser(rule, embeddings, schedule=plan.schedule), engine.draw_noise(plan, SEEDS)
    for call, (s, t) in enumerate(zip(plan.schedule.sigmas, plan.schedule.sigmas[1:], strict=False)):
        if call == AT:
            change(pipe)
        x = euler(denoiser, x, s, t)
    return x


WAYS = ["attach", "engine", "denoiser"]


@cache
def changed_in_the_middle(change):
    """The plain pipeline's latents, for a pipeline with LoRA where ``change`` is to one."""
    pipe, lora = tiny_pipeline(seed=21, **SMALL), change in LORA_CHANGES.values()
    if lora:
        with_lora(pipe)
    return drawn_by("plain", pipe, change if lora else lambda pipe: change(pipe.transformer))


SWITCHES = [(name, way) for name in ("switched", "scaled") for way in WAYS] + [("fused", "attach"), ("unloaded", "engine")]


@pytest.mark.parametrize(("name", "way"), SWITCHES)
def test_a_lora_switched_between_two_calls(name, way):
    change, pipe = LORA_CHANGES[name], tiny_pipeline(seed=21, **SMALL)
    with_lora(pipe)
    assert relative_error(drawn_by(way, pipe, change), changed_in_the_middle(change)) < ATTACHED_RUN


def test_every_change_is_one():
    drawn = [changed_in_the_middle(change) for change in (in_place, *LORA_CHANGES.values())]
    assert all(relative_error(a, b) > 0.01 for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("way", [*WAYS, "parity"])
@pytest.mark.parametrize("change", [in_place, through_data])
def test_packed_weights_changed_in_place(change, way):
    pipe = tiny_pipeline(seed=21, **SMALL)
    found = drawn_by(way, pipe, lambda pipe: change(pipe.transformer))
    assert relative_error(found, changed_in_the_middle(change)) < ATTACHED_RUN


@pytest.mark.parametrize("change", [add_lora, lambda pipe: other_storages(pipe.transformer)], ids=["lora", "storages"])
def test_packed_weights_that_can_serve_no_longer(change):
    """An attachment and a denoiser go on another way; a run of an engine says so."""
    plain, attached, denoised, engine = (tiny_pipeline(seed=21, **SMALL) for _ in range(4))
    wanted = drawn_by("plain", plain, change)
    assert relative_error(drawn_by("attach", attached, change), wanted) < ATTACHED_RUN
    assert relative_error(drawn_by("denoiser", denoised, change), wanted) < ATTACHED_RUN
    with pytest.raises(RuntimeError, match="was changed in the middle of a run on its packed weights"):
        drawn_by("engine", engine, change)


def test_what_a_rule_remembers_survives_another_path():
    """The average of APG goes on when a LoRA, here one that adds nothing, takes the run to the transformer's own modules."""
    rule = CFG(4.0) + SkipLayer(2.0, (1,)).reused(2) + APG(-0.5, 3.0, 0.3)

    def neutral(pipe):
        add_lora(pipe)
        pipe.set_adapters("style", 0.0)

    packed, changed = (tiny_pipeline(seed=21, **SMALL) for _ in range(2))
    wanted = drawn_by("attach", packed, lambda pipe: None, rule)
    assert relative_error(drawn_by("attach", changed, neutral, rule), wanted) < ATTACHED_RUN
    assert segue.attach(changed, rule).explain().count(MODULES) == 1


def test_fp8_copies_do_not_follow():
    pipe = tiny_pipeline(seed=21, **SMALL)
    engine = Engine.from_pipe(pipe, linears="fp8")
    embeddings = engine.encode(PROMPTS, NEGATIVE, max_sequence_length=T5_TOKENS)
    block = pipe.transformer.transformer_blocks[1]

    def callback(_):
        block.ff.net[2].weight.data.mul_(2)

    with pytest.raises(RuntimeError, match="in the middle of a run on fp8 copies"):
        engine.sample(embeddings, steps=3, seeds=SEEDS, callback=callback)
