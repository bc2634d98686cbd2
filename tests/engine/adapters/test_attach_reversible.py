"""Detaching leaves no trace."""

import copy

import pytest
import torch
from attached_runs import PATHS, draw, forced
from tiny_sd3 import tiny_pipeline

import segue
from segue import CFG, SkipLayer

CALL = {"prompt": ["leaf", "bee"], "guidance_scale": 4.5, "num_inference_steps": 3}
RULE = CFG(4.5) + SkipLayer(2.0, (1, 3))


def tensor_state(tensor: torch.Tensor) -> tuple:
    storage = tensor.untyped_storage()
    return id(tensor), tensor.requires_grad, tensor.dtype, tensor.stride(), tensor.storage_offset(), storage.nbytes()


def object_state(pipe) -> dict:
    """What the pipeline and its transformer are made of, by identity; values of tensors are compared apart."""
    transformer = pipe.transformer
    return {
        "tensors": {name: tensor_state(tensor) for name, tensor in transformer.state_dict(keep_vars=True).items()},
        "modules": {name: (id(module), type(module), sorted(vars(module))) for name, module in transformer.named_modules()},
        "processors": {name: id(processor) for name, processor in transformer.attn_processors.items()},
        "components": {name: id(component) for name, component in pipe.components.items()},
        "config": (dict(transformer.config), dict(pipe.config)),
        "attributes": sorted(vars(pipe)),
        "forward": (transformer.forward, "forward" in vars(transformer)),
    }


def global_state(pipe) -> dict:
    """Classes, functions and switches that belong to everyone."""
    from diffusers.models.attention import JointTransformerBlock
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0

    classes = (
        type(pipe),
        type(pipe.transformer),
        type(pipe.scheduler),
        JointTransformerBlock,
        Attention,
        JointAttnProcessor2_0,
    )
    return {
        "classes": [{name: id(value) for name, value in vars(kind).items()} for kind in (*classes, torch.nn.Module)],
        "attention": (id(torch.nn.functional.scaled_dot_product_attention), _AttentionBackendRegistry.get_active_backend()),
        "hooks": dict(torch.nn.modules.module._global_forward_hooks),
        "switches": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()),
    }


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_detaching_leaves_no_trace(path, requires_grad):
    pipe = tiny_pipeline("sd3.5-medium", seed=9)
    pipe.transformer.requires_grad_(requires_grad)
    before_images = draw(pipe, **CALL)
    values = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    objects, globals_ = object_state(pipe), global_state(pipe)
    with forced(pipe, path):
        attachment = segue.attach(pipe, RULE)
        draw(pipe, **CALL)
        assert attachment.explain().startswith(f"path: {'packed' if path == 'packed' else 'the transformer'}")
        assert global_state(pipe) == globals_
        segue.detach(pipe)
    assert object_state(pipe) == objects
    assert global_state(pipe) == globals_
    assert all(torch.equal(tensor, values[name]) for name, tensor in pipe.transformer.state_dict().items())
    assert torch.equal(draw(pipe, **CALL), before_images)


def test_attaching_without_a_run_leaves_no_trace():
    pipe = tiny_pipeline(seed=9)
    objects = object_state(pipe)
    attachment = segue.attach(pipe, RULE)
    attached = object_state(pipe)
    assert attachment.explain() == "attached; no run yet\npath: packed weights, shared with the pipeline"
    assert attachment.plan is None and object_state(pipe) == attached
    segue.detach(pipe)
    assert object_state(pipe) == objects


def test_an_attached_pipeline_is_saved_as_it_was(tmp_path):
    from diffusers import SD3Transformer2DModel

    pipe = tiny_pipeline(seed=9)
    segue.attach(pipe, RULE)
    draw(pipe, **CALL)
    pipe.transformer.save_pretrained(tmp_path)
    loaded = SD3Transformer2DModel.from_pretrained(tmp_path)
    wanted = tiny_pipeline(seed=9).transformer
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("whole", [False, True], ids=["transformer", "pipeline"])
def test_a_copy_of_what_is_attached_is_not(whole):
    pipe = tiny_pipeline(seed=9)
    plain = draw(pipe, **CALL)
    segue.attach(pipe, RULE)
    guided = draw(pipe, **CALL)
    if whole:
        other = copy.deepcopy(pipe)
    else:
        other = tiny_pipeline(seed=9)
        other.transformer = copy.deepcopy(pipe.transformer)
    assert torch.equal(draw(other, **CALL), plain)
    with pytest.raises(ValueError, match="nothing is attached"):
        segue.detach(other)
    segue.attach(other, RULE)
    segue.detach(pipe)
    assert torch.equal(draw(other, **CALL), guided)
    segue.detach(other)
    assert torch.equal(draw(other, **CALL), plain)


@pytest.mark.parametrize("where", ["both", "run", "detach"])
def test_weights_may_be_trained_after_a_run_in_inference_mode(where):
    pipe = tiny_pipeline(seed=9)
    weight = pipe.transformer.transformer_blocks[1].attn.to_q.weight
    segue.attach(pipe, RULE)
    with torch.inference_mode(where != "detach"):
        draw(pipe, **CALL)
    with torch.inference_mode(where != "run"):
        segue.detach(pipe)
    assert not any(parameter.is_inference() for parameter in pipe.transformer.parameters())
    weight.requires_grad_(True).square().sum().backward()
    assert torch.equal(weight.grad, 2 * weight)


def test_attaching_again_replaces_the_rule():
    pipe = tiny_pipeline(seed=9)
    first = segue.attach(pipe, CFG(4.5))
    guided = draw(pipe, **CALL)
    assert segue.attach(pipe, None) is first
    unguided = draw(pipe, **CALL)
    segue.detach(pipe)
    assert (guided - unguided).abs().max() > 0.01
    assert torch.allclose(unguided, draw(pipe, **(CALL | {"guidance_scale": 1.0})), atol=1e-4)
