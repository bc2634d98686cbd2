"""Before the first run ``explain()`` tells the path that this run then takes, and changes nothing to find out."""

import pytest
import torch
from attached_runs import draw
from tiny_sd3 import add_ip_adapter, tiny_pipeline
from torch import nn

import segue
from segue import CFG


def add_lora(pipe):
    peft = pytest.importorskip("peft")
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))


def offload(pipe):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True)


def replace_a_linear(pipe):
    class Other(nn.Linear):
        pass

    pipe.transformer.proj_out = Other(16, 16)


CHANGES = {
    "none": (lambda pipe: None, "path: packed weights, shared with the pipeline"),
    "dtype": (lambda pipe: pipe.to(torch.bfloat16), "path: packed weights, shared with the pipeline"),
    "lora": (add_lora, "transformer_blocks.0.attn.to_q is a peft.tuners.lora"),
    "offload": (offload, "the transformer has an accelerate hook (AlignDevicesHook): its weights move"),
    "chunks": (lambda pipe: pipe.transformer.enable_forward_chunking(1, dim=1), "runs its feed-forward in chunks"),
    "processors": (lambda pipe: add_ip_adapter(pipe.transformer), "SD3IPAdapterJointAttnProcessor2_0"),
    "other module": (replace_a_linear, "replace_a_linear.<locals>.Other"),
    "casting": (lambda pipe: pipe.transformer.enable_layerwise_casting(torch.float16, torch.float32), "time_text_embed"),
}


def storages(pipe) -> dict:
    """Where every tensor of the transformer lies: packing would move the projections together."""
    return {name: (id(tensor), tensor.data_ptr()) for name, tensor in pipe.transformer.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("first", ["change", "attach"])
def test_the_path_of_the_run_to_come(name, first):
    change, expected = CHANGES[name]
    pipe = tiny_pipeline(seed=11)
    if first == "change":
        change(pipe)
        attachment = segue.attach(pipe, CFG(3.0))
    else:
        attachment = segue.attach(pipe, CFG(3.0))
        change(pipe)
    before = storages(pipe), pipe.transformer.forward
    said = attachment.explain().splitlines()
    assert said[0] == "attached; no run yet" and expected in said[1]
    assert attachment.explain().splitlines() == said
    assert (storages(pipe), pipe.transformer.forward) == before
    draw(pipe, guidance_scale=2.0, num_inference_steps=2)
    assert attachment.explain().splitlines()[0] == said[1]


def test_a_transformer_that_can_run_neither_way():
    pipe = tiny_pipeline(seed=11)
    attachment = segue.attach(pipe, CFG(3.0))
    pipe.transformer.compile(backend="eager")
    said = attachment.explain().splitlines()[1]
    assert said.startswith("path: none, because the transformer is compiled as a whole")
    with pytest.raises(ValueError, match="the transformer is compiled as a whole"):
        draw(pipe, guidance_scale=2.0)
