"""The ComfyUI node, inside a stand-in for the parts of ComfyUI that it touches (``comfy_stand_in`` says which).

In its V3 form it is the same node, for a stand-in of the interface that ComfyUI documents (``comfy_api_stand_in``).
"""

import importlib.util
import sys
import tomllib
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from comfy_api_stand_in import latest, load_custom_node
from comfy_stand_in import BaseModel, FlowSampling, ModelPatcher, calc_cond_batch, copy_nested, sampling_function
from markdown_pages import ROOT

from segue.engine.adapters import comfy as adapter
from segue.engine.planning.schedule import flow_shift

ERROR = 2e-5  # fp32 network outputs combined in fp32 against fp64, over 6 Euler steps
LAYERS = (1, 3, 4)
CFG_SCALE, WEIGHT, SWITCH = 4.5, 3.0, 0.7


@pytest.fixture(autouse=True)
def comfy_package(monkeypatch):
    package, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    samplers.calc_cond_batch = calc_cond_batch
    package.samplers = samplers
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(11)
    return SimpleNamespace(
        x=torch.randn(2, 6, 3, 5, generator=generator),
        cond=torch.randn(2, 7, 6, generator=generator),
        uncond=torch.randn(2, 7, 6, generator=generator),
    )


SIGMAS = flow_shift(6, 3.0).sigmas


def euler(patcher, drawn, cond_scale, sigmas=SIGMAS):
    x = drawn.x
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((len(x),), s)
        estimate = sampling_function(patcher.model, x, level, drawn.uncond, drawn.cond, cond_scale, patcher.model_options)
        x = x + (x - estimate) / s * (t - s)
    return x


def naive_euler(drawn, switch=SWITCH, cfg=CFG_SCALE, weight=WEIGHT, sigmas=SIGMAS, shift=3.0):
    """Every branch in full on velocities; the weak network is one that does not have the skipped blocks."""
    full, weak = BaseModel(shift=shift).diffusion_model, BaseModel(shift=shift).diffusion_model
    weak.joint_blocks = [block for i, block in enumerate(weak.joint_blocks) if i not in LAYERS]
    x = drawn.x
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((len(x),), 1000 * s)
        c, u = (full(x, level, context, {}).double() for context in (drawn.cond, drawn.uncond))
        k = weak(x, level, drawn.cond, {}).double()
        v = u + cfg * (c - u) if s > switch else c + weight * (c - k)
        x = (x.double() + v * (t - s)).float()
    return x


def apply(patcher, cfg=CFG_SCALE, weight=WEIGHT, layers="1, 3-4", switch_by="sigma", switch=SWITCH):
    (patched,) = adapter.SegueSegmentedGuidance().apply(
        model=patcher, cfg=cfg, weight=weight, layers=layers, switch_by=switch_by, switch=switch
    )
    return patched


ABOVE, BELOW = [([0, 1], ())], [([0], ()), ([0], LAYERS)]


@pytest.mark.parametrize("cond_scale", [1.0, 4.5, 7.0, 0.0])
def test_the_rule_holds_whatever_the_samplers_cfg_is(drawn, cond_scale):
    patched = apply(ModelPatcher(BaseModel()))
    result, expected = euler(patched, drawn, cond_scale), naive_euler(drawn)
    assert (result - expected).abs().max() <= ERROR * expected.abs().max()
    wanted = [evaluation for s in SIGMAS[:-1] for evaluation in (ABOVE if s > SWITCH else BELOW)]
    assert patched.model.evaluations == wanted
    assert 0 < sum(s > SWITCH for s in SIGMAS[:-1]) < len(SIGMAS) - 1


@pytest.mark.parametrize(("cfg", "weight"), [(1.0, WEIGHT), (CFG_SCALE, 0.0), (1.0, 0.0)])
def test_a_weight_of_zero_costs_nothing(drawn, cfg, weight):
    patched = apply(ModelPatcher(BaseModel()), cfg=cfg, weight=weight)
    result, expected = euler(patched, drawn, 5.0), naive_euler(drawn, cfg=cfg, weight=weight)
    assert (result - expected).abs().max() <= ERROR * expected.abs().max()
    above, below = (ABOVE if cfg != 1 else [([0], ())]), (BELOW if weight else [([0], ())])
    assert patched.model.evaluations == [e for s in SIGMAS[:-1] for e in (above if s > SWITCH else below)]


def test_percent_follows_the_models_shift_at_sampling_time(drawn):
    patched = apply(ModelPatcher(BaseModel(shift=3.0)), switch_by="percent", switch=0.45)
    patched.model.model_sampling = FlowSampling(1.5)  # a node behind ours
    switch = 1.5 * 0.55 / (1 + 0.5 * 0.55)  # 0.647; at shift 3 it would be 0.786, with a level of SIGMAS between them
    result, expected = euler(patched, drawn, 4.0), naive_euler(drawn, switch=switch)
    assert (result - expected).abs().max() <= ERROR * expected.abs().max()
    assert not torch.equal(naive_euler(drawn, switch=0.786), expected)


def test_a_level_at_the_switch_or_above_one_belongs_to_a_segment(drawn):
    patched = apply(ModelPatcher(BaseModel()), switch=0.5)
    for level, wanted in ((0.5, BELOW), (0.50001, ABOVE), (1.2, ABOVE)):
        patched.model.evaluations.clear()
        sigma = torch.full((2,), level)
        sampling_function(patched.model, drawn.x, sigma, drawn.uncond, drawn.cond, 2.0, patched.model_options)
        assert patched.model.evaluations == wanted


def test_a_cfg_function_of_another_node_finds_nothing_left_to_do(drawn):
    patched = apply(ModelPatcher(BaseModel()))
    patched.model_options["sampler_cfg_function"] = lambda args: (
        args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])
    )
    expected = naive_euler(drawn)
    assert (euler(patched, drawn, 6.0) - expected).abs().max() <= ERROR * expected.abs().max()


def test_other_patches_survive_and_the_given_model_is_not_touched(drawn):
    seen = []

    def other(args, extra):
        seen.append(1)
        return extra["original_block"](args)

    patcher = ModelPatcher(BaseModel())
    patcher.model_options["transformer_options"] = {"patches_replace": {"dit": {("double_block", 0): other}}, "kept": 1}
    before = copy_nested(patcher.model_options)
    patched = apply(patcher)
    expected = naive_euler(drawn)
    assert (euler(patched, drawn, 4.0) - expected).abs().max() <= ERROR * expected.abs().max()
    assert len(seen) == len(patched.model.evaluations)
    assert patcher.model_options == before
    assert patched.model_options["transformer_options"] == before["transformer_options"]


def test_one_line_in_custom_nodes_installs_it(tmp_path):
    line = next(line.strip() for line in adapter.__doc__.splitlines() if line.strip().startswith("from segue"))
    path = tmp_path / "segue_sgg.py"
    path.write_text(line + "\n")
    spec = importlib.util.spec_from_file_location("segue_sgg", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (name,) = module.NODE_CLASS_MAPPINGS
    node = module.NODE_CLASS_MAPPINGS[name]
    assert name in module.NODE_DISPLAY_NAME_MAPPINGS
    required = node.INPUT_TYPES()["required"]
    defaults = {key: kind[1]["default"] if isinstance(kind[0], str) else kind[0][0] for key, kind in list(required.items())[1:]}
    (patched,) = getattr(node(), node.FUNCTION)(model=ModelPatcher(BaseModel(blocks=24)), **defaults)
    assert node.RETURN_TYPES == ("MODEL",)
    assert "sampler_calc_cond_batch_function" in patched.model_options


def test_automatic_layers_are_the_published_ones_for_the_medium_models_only():
    assert adapter.choose_layers("auto", 24) == (7, 8, 9)
    with pytest.raises(ValueError, match=r"7, 8, 9 suit SD3-medium and SD3\.5-medium \(24 blocks\) and damage a model of 38"):
        apply(ModelPatcher(BaseModel(blocks=38)), layers="auto")
    assert adapter.choose_layers("35, 0-2", 38) == (35, 0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "1, 6"}, "layer 6 does not exist: the model has blocks 0 to 5"),
        ({"layers": "seven"}, "expected numbers such as 3 or 0-7"),
        ({"layers": "1, 1"}, "layers must be distinct"),
        ({"cfg": float("nan")}, "a weight must be finite, got nan"),
        ({"switch": 1.5}, "the switch is a noise level between 0 and 1, or .*, got 1.5"),
        ({"switch_by": "steps"}, "by sigma or by percent, got 'steps'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_when_the_node_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        apply(ModelPatcher(BaseModel()), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": True}, "a scale must be a finite number or a function of sigma, got True"),
        ({"weight": "3"}, "a scale must be a finite number or a function of sigma, got '3'"),
        ({"switch": True}, "the switch is a noise level between 0 and 1, or .*, got True"),
        ({"layers": 7}, "layers are written as text, such as '7, 8, 9' or 'auto', got 7"),
    ],
)
def test_values_of_another_kind_are_refused_when_the_node_runs(changes, message):
    with pytest.raises(TypeError, match=message):
        apply(ModelPatcher(BaseModel()), **changes)


@pytest.mark.parametrize("switch_by", ["sigma", "percent"])
def test_numbers_of_numpy_are_numbers(drawn, switch_by):
    plain = apply(ModelPatcher(BaseModel()), cfg=4.5, weight=2.0, switch=0.5, switch_by=switch_by)
    given = {"cfg": np.float32(4.5), "weight": np.int64(2), "switch": torch.tensor(0.5)}
    patched = apply(ModelPatcher(BaseModel()), switch_by=switch_by, **given)
    assert torch.equal(euler(patched, drawn, 4.0), euler(plain, drawn, 4.0))


def test_what_it_cannot_serve_is_refused_in_one_sentence(drawn):
    other_network = BaseModel()
    other_network.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="skips the joint blocks of SD3"):
        apply(ModelPatcher(other_network))
    with pytest.raises(ValueError, match="another node already decides"):
        apply(apply(ModelPatcher(BaseModel())))

    patched = apply(ModelPatcher(BaseModel()))
    high, split = torch.tensor([0.9, 0.9]), torch.tensor([0.9, 0.3])
    with pytest.raises(ValueError, match="needs a negative prompt: use a sampler or guider that takes one"):
        sampling_function(patched.model, drawn.x, high, None, drawn.cond, 4.0, patched.model_options)
    with pytest.raises(ValueError, match=r"on both sides of the switch: sigma 0\.3 to 0\.9"):
        sampling_function(patched.model, drawn.x, split, drawn.uncond, drawn.cond, 4.0, patched.model_options)
    assert patched.model.evaluations == []


PACK = ROOT / "examples" / "comfyui"


@pytest.fixture
def v3_node(monkeypatch):
    """The node that a ComfyUI with ``comfy_api`` finds in the folder for ``custom_nodes``."""
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest())
    spec = importlib.util.spec_from_file_location("segue_pack", PACK / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    nodes = load_custom_node(module)
    assert list(nodes) == list(adapter.NODE_CLASS_MAPPINGS)
    return nodes[adapter.NODE]


def test_the_v3_node_shows_what_the_v1_node_shows(v3_node):
    v1, info = adapter.SegueSegmentedGuidance, v3_node.info_v1()
    wanted = {}
    for name, (kind, *options) in v1.INPUT_TYPES()["required"].items():
        settings = dict(*options)
        wanted[name] = ("COMBO", {"options": kind, **settings}) if isinstance(kind, list) else (kind, settings)
    assert info["input"] == {"required": wanted}
    assert list(info["input"]["required"]) == list(wanted)
    assert tuple(info["output"]) == v1.RETURN_TYPES
    assert (info["category"], info["description"]) == (v1.CATEGORY, v1.DESCRIPTION)
    assert info["display_name"] == adapter.NODE_DISPLAY_NAME_MAPPINGS[info["name"]]


def test_the_v3_node_guides_as_the_v1_node(v3_node, drawn):
    given = {"cfg": CFG_SCALE, "weight": WEIGHT, "layers": "1, 3-4", "switch_by": "sigma", "switch": SWITCH}
    patcher = ModelPatcher(BaseModel())
    (patched,) = v3_node.run(model=patcher, **given)
    assert patched is not patcher and adapter.HOOK not in patcher.model_options
    expected = naive_euler(drawn)
    assert (euler(patched, drawn, 7.0) - expected).abs().max() <= ERROR * expected.abs().max()
    with pytest.raises(ValueError, match="layer 6 does not exist"):
        v3_node.run(model=patcher, **given | {"layers": "6"})


def test_what_the_registry_reads_of_the_folder():
    table = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert table["project"]["version"] == own["version"]
    assert table["project"]["requires-python"] == own["requires-python"]
    assert table["project"]["dependencies"] == [own["name"]]
    assert table["tool"]["comfy"]["DisplayName"] == adapter.TITLE
