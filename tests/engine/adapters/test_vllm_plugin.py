"""The plug-in for vLLM-Omni in a stand-in written from its wheel 0.30.0 (``vllm_omni_stand_in`` says of what)."""

import importlib
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest
import torch
from attached_runs import draw_attached
from markdown_pages import ROOT
from tiny_sd3 import T5_TOKENS, tiny_pipeline
from vllm_omni_stand_in import REGISTERED, Request, Sampling, modules, start_stage

from segue import CFG, SGG, SkipLayer

pytestmark = pytest.mark.filterwarnings("ignore::segue.PlanWarning")

NAME = "SegueStableDiffusion3Pipeline"
GROUP = "vllm_omni.general_plugins"
STEPS, SEED = 4, 3
RULE = SGG(CFG(4.5), SkipLayer(3.0, (1, 2)), 0.7)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(autouse=True)
def omni(monkeypatch):
    """A process of vLLM-Omni that has loaded its plug-ins."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    plugin = importlib.import_module("segue.engine.adapters.vllm_plugin")
    for name in (plugin.PIPELINE, *REGISTERED):
        vars(plugin).pop(name, None)  # made on the classes of this process
        REGISTERED.pop(name, None)
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    for _ in range(2):  # some processes load them twice
        for name, value in points.items():
            EntryPoint(name, value, GROUP).load()()
    yield plugin
    vars(plugin).pop(plugin.PIPELINE, None)


@pytest.fixture
def stage(pipe):
    def stage(**config):
        call = {"max_sequence_length": T5_TOKENS, "output_type": "latent"}
        return start_stage(NAME, model=pipe, diffusers_call_kwargs=call, **config)

    return stage


def request(scale=4.5, **extra):
    return Request([{"prompt": "leaf", "negative_prompt": "blur"}], Sampling(scale, STEPS, SEED, extra))


def attached(pipe, rule, scale=4.5):
    """The latents of the rule attached to the pipeline itself."""
    call = {"num_inference_steps": STEPS, "guidance_scale": scale, "negative_prompt": "blur"}
    return draw_attached(pipe, rule, generator=lambda: torch.Generator().manual_seed(SEED), **call).latents


def test_it_registers_a_pipeline_beside_those_that_are_there():
    assert REGISTERED == {
        "SegueStableDiffusion3Pipeline": ("segue.engine.adapters.vllm_plugin", "SegueStableDiffusion3Pipeline")
    }


def test_requests_are_drawn_by_the_rule_of_the_stage_or_their_own(pipe, stage):
    model = stage(custom_pipeline_args={"guidance": "sgg:scale=4.5,weight=3,layers=1-2,switch=0.7"})
    first, other, again = (model(request(**own)).output for own in ({}, {"guidance": "cfg:scale=2"}, {}))
    assert torch.equal(other, attached(pipe, CFG(2.0)))
    assert torch.equal(first, attached(pipe, RULE)) and torch.equal(again, first)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_without_a_rule_the_scale_of_the_request_acts(pipe, stage, scale):
    assert torch.equal(stage()(request(scale)).output, attached(pipe, CFG("call"), scale))


def test_what_cannot_be_served_is_refused(omni, stage):
    with pytest.raises(ValueError, match="unknown guidance rule 'sg'"):
        stage(custom_pipeline_args={"guidance": "sg"})
    with pytest.raises(NotImplementedError, match="Tensor parallel"):
        stage(parallel_config=type("Config", (), {"tensor_parallel_size": 2}))
    with pytest.raises(TypeError, match="a diffusers pipeline of Stable Diffusion 3 or DiT is needed, got an object of Linear"):
        start_stage(NAME, model=torch.nn.Linear(1, 1))
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        omni.Other  # noqa: B018
