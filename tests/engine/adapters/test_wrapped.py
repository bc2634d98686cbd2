"""Validation in the middle of training: transformers and networks as accelerate, PyTorch and peft wrap them."""

import copy

import pytest
import torch
from attached_runs import draw, relative_error
from live_runs import PROMPTS, SEEDS, generate
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline
from torch import nn
from torch.optim.swa_utils import AveragedModel

import segue
from segue import CFG, Engine, SkipLayer
from tests.tolerances import ATTACHED_RUN

SMALL = {"num_layers": 3, "dual_attention_layers": (0,)}
RULE = CFG(4.5)
CALL = {"prompt": PROMPTS, "negative_prompt": "dull", "guidance_scale": 4.5, "num_inference_steps": 2}


@pytest.fixture
def accelerator():
    state = pytest.importorskip("accelerate.state")
    from accelerate import Accelerator

    yield Accelerator(mixed_precision="bf16", cpu=True)
    state.AcceleratorState._reset_state(True)


def seeded(**call):
    return CALL | {"generator": lambda: [torch.Generator().manual_seed(seed) for seed in SEEDS]} | call


# --- a transformer prepared for mixed precision: its forward runs under autocast and returns fp32 ------------------------


@pytest.fixture
def prepared(accelerator):
    """A pipeline in the middle of training, as diffusers' training scripts build one for validation."""
    pipe = tiny_pipeline(seed=21, **SMALL)
    transformer = accelerator.prepare(pipe.transformer.requires_grad_(True))
    pipe.transformer = accelerator.unwrap_model(transformer)
    assert "forward" in vars(pipe.transformer)
    return pipe


@pytest.mark.parametrize("path", ["packed", "modules"])
def test_attached_to_a_transformer_in_mixed_precision(prepared, path):
    """As far from fp32 as the plain pipeline in mixed precision is; training finds its forward again."""
    if path == "modules":
        prepared.transformer.proj_out.register_forward_hook(lambda *_: None)
    before = prepared.transformer.forward
    exact = draw(tiny_pipeline(seed=21, **SMALL), **seeded())
    mixed = relative_error(draw(prepared, **seeded()), exact)
    attachment = segue.attach(prepared, RULE)
    found = draw(prepared, **seeded())
    assert ("packed weights" in attachment.explain()) == (path == "packed")
    assert mixed / 4 < relative_error(found, exact) < 2 * mixed and found.dtype == torch.float32
    segue.attach(prepared, None)
    segue.detach(prepared)
    assert prepared.transformer.forward == before
    assert relative_error(draw(prepared, **seeded()), exact) == mixed


def test_an_engine_on_a_transformer_in_mixed_precision_computes_in_the_dtype_of_its_weights(prepared):
    exact = generate(Engine.from_pipe(tiny_pipeline(seed=21, **SMALL)), RULE).latents
    before = prepared.transformer.forward
    engine = Engine.from_pipe(prepared)
    assert relative_error(generate(engine, RULE).latents, exact) < ATTACHED_RUN
    assert engine.dtype == torch.float32 and prepared.transformer.forward == before


def test_a_transformer_prepared_after_attach(accelerator):
    """Training goes on with the rule inside the wrapper until someone says so: detach does."""
    pipe = tiny_pipeline(seed=21, **SMALL)
    segue.attach(pipe, RULE)
    accelerator.prepare(pipe.transformer)
    for function in (segue.detach, lambda pipe: segue.attach(pipe, RULE)):
        with pytest.raises(ValueError, match=r"wrapped after segue\.attach: take that wrapper off first"):
            function(pipe)


# --- wrappers in the place of the transformer or the network -------------------------------------------------------------


def distributed(module):
    """In a group of one process that lives in memory."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(module.requires_grad_(True))


@pytest.fixture(autouse=True)
def _no_group_is_left():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def adapted(module):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(module, peft.LoraConfig(target_modules=["to_q"], init_lora_weights=False))


WRAPPERS = {"DistributedDataParallel": distributed, "DataParallel": nn.DataParallel, "AveragedModel": AveragedModel}


@pytest.mark.parametrize(("name", "wrap"), [*WRAPPERS.items(), ("PeftModel", adapted)])
def test_a_pipeline_whose_transformer_is_wrapped_is_told_how_to_unwrap_it(name, wrap):
    pipe = tiny_pipeline(seed=21, **SMALL)
    wrapped = pipe.transformer = wrap(pipe.transformer)
    for function in (segue.attach, Engine.from_pipe):
        with pytest.raises(TypeError, match=f"wrapped in a {name}, .* pipe.transformer = pipe.transformer") as error:
            function(pipe)
    advice = str(error.value).split("pipe.transformer = ")[1].split(",")[0]
    pipe.transformer = eval(advice, {"pipe": pipe})  # what the sentence says to do works
    assert pipe.transformer is not wrapped
    segue.attach(pipe, RULE)
    assert torch.isfinite(draw(pipe, **CALL)).all()


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), torch.compile], ids=[*WRAPPERS, "OptimizedModule"])
def test_an_engine_looks_through_the_wrappers_of_its_network(wrap):
    network = tiny_sit(depth=3, exits=())
    wanted = Engine(network, device="cpu").sample([0, 4], SkipLayer(2.0, (1,)), steps=2, seeds=SEEDS).latents
    wrapped = wrap(wrap(copy.deepcopy(network)) if wrap is nn.DataParallel else copy.deepcopy(network))
    found = Engine(wrapped, device="cpu").sample([0, 4], SkipLayer(2.0, (1,)), steps=2, seeds=SEEDS).latents
    assert torch.equal(found, wanted)


def test_attached_to_a_transformer_whose_blocks_are_sharded():
    """FSDP2 gathers weights in hooks on the modules themselves, inside of which an attachment runs."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    pipe = tiny_pipeline(seed=21, **SMALL)
    wanted = draw(pipe, **seeded())
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for module in (*pipe.transformer.requires_grad_(True).transformer_blocks, pipe.transformer):
        fsdp.fully_shard(module, mesh=mesh)
    segue.attach(pipe, RULE)
    assert relative_error(draw(pipe, **seeded()), wanted) < ATTACHED_RUN


def test_networks_that_an_engine_cannot_run():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(ValueError, match="holds its weights in shards: sample from a full copy"):
        Engine(FullyShardedDataParallel(), device="cpu")
    with pytest.raises(TypeError, match="runs a SiT, a DiT or an MMDiT, got a Linear"):
        Engine(nn.Linear(2, 2), device="cpu")


@pytest.mark.parametrize("way", ["attach", "engine"])
def test_weights_of_an_average_are_put_in_and_taken_out_again(way):
    """As diffusers' EMAModel does around a validation: by ``.data``, which PyTorch does not count."""
    training_utils = pytest.importorskip("diffusers.training_utils")
    plain, live = (tiny_pipeline(seed=21, **SMALL) for _ in range(2))
    if way == "attach":
        segue.attach(live, RULE)
        run = lambda: draw(live, **seeded())
    else:
        engine = Engine.from_pipe(live)
        run = lambda: engine.generate(PROMPTS, "dull", RULE, steps=2, seeds=SEEDS, max_sequence_length=T5_TOKENS).latents
    drawn = []
    for pipe, function in ((plain, lambda: draw(plain, **seeded())), (live, run)):
        parameters = list(pipe.transformer.parameters())
        average = training_utils.EMAModel([1.2 * parameter for parameter in parameters])
        drawn.append(function())
        average.store(parameters)
        average.copy_to(parameters)
        drawn.append(function())
        average.restore(parameters)
        drawn.append(function())
    assert all(relative_error(found, wanted) < ATTACHED_RUN for found, wanted in zip(drawn[3:], drawn[:3], strict=True))
    assert relative_error(drawn[1], drawn[0]) > 0.01


def test_networks_that_an_engine_loads_itself_are_not_trained():
    """Or every loop over a denoiser outside ``torch.no_grad()`` would be recorded."""
    engine = Engine.from_pretrained("herbarium", device="cpu")
    assert not any(parameter.requires_grad for parameter in engine.models["main"].parameters())
