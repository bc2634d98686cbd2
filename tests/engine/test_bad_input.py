"""What cannot be done is said in one sentence with the offending value, before any work, and leaves nothing behind."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny
from tiny_models import tiny_sit
from tiny_sd3 import tiny_transformer
from typer.main import get_command
from typer.testing import CliRunner

from segue import (
    APG,
    CFG,
    GFCG,
    NAG,
    SGG,
    AutoGuidance,
    BetaCFG,
    Branch,
    CFGZeroStar,
    EarlyExit,
    Engine,
    Guidance,
    HiGS,
    PerturbedLayers,
    Rescale,
    Schedule,
    SkipLayer,
    Term,
    Weight,
    Window,
    linear,
    parse_rule,
)
from segue.__main__ import app
from segue.engine.device import resolve_device
from segue.engine.rules.correction import Correction

NAN = float("nan")


def words(value) -> str:
    """A short name for a parameter: what was given, not what was expected."""
    given = " ".join(value) if isinstance(value, list) else str(value) if isinstance(value, dict) else ""
    return given[:40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder):
    return save_tiny(folder / "tiny.safetensors")


@pytest.fixture(scope="module")
def engine(model):
    return Engine.from_pretrained(model)


@pytest.fixture(scope="module")
def broken(folder, model):
    """Checkpoints that must not load, by name."""
    whole = model.read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "header.safetensors").write_bytes(whole[:20])
    (folder / "garbage.pt").write_bytes(b"these are no weights")
    with safe_open(model, "pt") as file:
        header = file.metadata()
    tensors = load_file(model)
    save_file(tensors | {"blocks.3.attn.qkv.bias": torch.zeros(7)}, folder / "misshaped.safetensors", metadata=header)
    fewer = {key: value for key, value in tensors.items() if "blocks.3.mlp" not in key}
    save_file(fewer, folder / "lacking.safetensors", metadata=header)
    torch.save({"model": tensors, "hook": functools.partial(print, "loaded")}, folder / "pickled.pt")
    torch.save({"model": tensors}, folder / "whole.pt")
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:-4000])
    return folder


# --- the API ---------------------------------------------------------------------------------------------------------

RULES = [
    (lambda: CFG(NAN), ValueError, "nan"),
    (lambda: CFG(float("inf")), ValueError, "inf"),
    (lambda: CFG("3"), TypeError, "'3'"),
    (lambda: CFG(3.0, delta=NAN), ValueError, "nan"),
    (lambda: CFG(3.0, condition="nobody"), ValueError, "'nobody'"),
    (lambda: CFG(3.0, windw=None), TypeError, "windw"),
    (lambda: CFG(True), TypeError, "True"),
    (lambda: CFG(10**400), ValueError, "a finite number .* 1000"),
    (lambda: CFG(1e39), ValueError, "a weight must lie within 3.4e.38 of zero, as far as fp32 reaches, got 1e.39"),
    (lambda: NAG(1e39), ValueError, "scale of NAG must lie within 3.4e.38 of zero"),
    (lambda: CFG(2.0) + HiGS(1e39), ValueError, "weight must lie within 3.4e.38 of zero, as far as fp32 reaches, got 1e.39"),
    (lambda: CFG(2.0) + APG(0.5, float("inf"), 1e300), ValueError, "eta must lie within .* got 1e.300"),
    (lambda: HiGS(2.0, low=0.9, high=0.4), ValueError, "low 0.9 is not below high 0.4"),
    (lambda: HiGS([2.0, 1.0], low=[0.2, 0.5], high=0.5), ValueError, "low 0.5 is not below high 0.5"),
    (lambda: BetaCFG(1e308, 2.0), ValueError, "a must lie between 1 and 1e.06, got 1e.308"),
    (lambda: GFCG(1.0, classifier="a", temperature=1e-320), ValueError, "temperature must be finite and at least 1e-06"),
    (lambda: parse_rule("cfg:scale=2,order=2"), ValueError, "order 2 of cfg is of directions .* give refresh or calls too"),
    (lambda: parse_rule("cfgpp:scale=0.3,0.4"), ValueError, r"the share of CFG\+\+ must be a number, got \(0.3, 0.4\)"),
    (lambda: parse_rule("gfcg:weight=1,classifier="), ValueError, "a classifier is a name"),
    (lambda: parse_rule("nag:scale=call"), ValueError, "scale of NAG must be a number, got 'call'"),
    (lambda: CFG(3.0, window=(0.2, 0.8)), TypeError, r"made by Window.sigma, .* \(0.2, 0.8\)"),
    (lambda: CFG(3.0, window=()), TypeError, r"\(\)"),
    (lambda: CFG(3.0, channels=True), TypeError, "True"),
    (lambda: CFG(3.0, condition=1.5), TypeError, "integer label, got 1.5"),
    (lambda: CFG(3.0, condition=None), TypeError, "None"),
    (lambda: CFG(3.0, condition=True), TypeError, "True"),
    (lambda: Branch(network="skip"), TypeError, "a Perturb, an Exit or a DropBlocks, got 'skip'"),
    (lambda: Branch(network=(2, 3)), TypeError, r"\(2, 3\)"),
    (lambda: Branch(model=1), TypeError, "name of a network, got 1"),
    (lambda: Term("uncond", Weight(2.0)), TypeError, "'uncond'"),
    (lambda: Term(Branch("uncond"), 2.0), TypeError, r"such as Weight\(2.0\), got 2.0"),
    (lambda: Weight(function=3.0), TypeError, "callable, got 3.0"),
    (lambda: Guidance(corrections=(Correction(),)), TypeError, "made by functions such as Rescale"),
    (lambda: SkipLayer(2.0, (7, -1)), ValueError, "-1"),
    (lambda: SkipLayer(2.0, 7.5), TypeError, "7.5"),
    (lambda: SkipLayer(2.0, (7, 7)), ValueError, r"\(7, 7\)"),
    (lambda: SkipLayer(2.0, "7,8"), TypeError, "'7'"),
    (lambda: PerturbedLayers(1.0, (3,), kind="shake"), ValueError, "'shake'"),
    (lambda: EarlyExit(1.0, 0), ValueError, "0"),
    (lambda: AutoGuidance(1.0, model="main"), ValueError, "'main'"),
    (lambda: SGG(CFG(3.0), SkipLayer(2.0, (7,)), switch=1.5), ValueError, "1.5"),
    (lambda: SGG(CFG(3.0), SkipLayer(2.0, (7,)), switch=NAN), ValueError, "nan"),
    (lambda: SGG(CFG(3.0), SkipLayer(2.0, (7,)), Window.steps(1, 14)), ValueError, "begins with the run, .* got steps 1-14"),
    (lambda: SGG(CFG(3.0), SkipLayer(2.0, (7,)), "fraction:0.2,0.5"), ValueError, r"got fraction \[0.2, 0.5\)"),
    (lambda: SGG(CFG(3.0), SkipLayer(2.0, (7,)), "half"), ValueError, "a number, got .half."),
    (lambda: CFG(3.0, window="steps"), ValueError, "window such as sigma:0.2,0.8 .* got .steps."),
    (lambda: CFG(3.0, window="sigma:0,x"), ValueError, "a number, got .x."),
    (lambda: SGG(CFG(3.0, window=Window.steps(1, 2)), SkipLayer(2.0, (7,)), 0.6), ValueError, "steps 1-2"),
    (lambda: Window.sigma(0.8, 0.2), ValueError, "0.8 to 0.2"),
    (lambda: Window.sigma(0.5, 0.5), ValueError, "0.5 to 0.5"),
    (lambda: Window.fraction(0.0, 1.2), ValueError, "1.2"),
    (lambda: Window.steps(14, 1), ValueError, "14 to 1"),
    (lambda: Window.steps(0, 3), ValueError, "0 to 3"),
    (lambda: Window.sigma(0.0, NAN), ValueError, "nan"),
    (lambda: Window.sigma(0.0, "1"), TypeError, "finite number, got '1'"),
    (lambda: CFGZeroStar(-1), ValueError, "zero_steps must be at least 0, got -1"),
    (lambda: CFGZeroStar(1.0), TypeError, "whole number, got 1.0"),
    (lambda: Rescale(True), TypeError, "phi must be a number, got True"),
    (lambda: parse_rule("cgf"), ValueError, "'cgf'"),
    (lambda: parse_rule("cfg:scal=3"), ValueError, "'scal'"),
    (lambda: parse_rule("cfg:scale=NaN"), ValueError, "nan"),
    (lambda: parse_rule("slg", "some model"), ValueError, "'some model'"),
    (lambda: Schedule((0.2, 0.8, 0.0)), ValueError, "0.2 followed by 0.8"),
    (lambda: Schedule((1.0, NAN)), ValueError, "nan"),
]


@pytest.mark.parametrize(("make", "error", "value"), RULES)
def test_a_rule_or_schedule_out_of_range_cannot_be_made(make, error, value):
    with pytest.raises(error, match=value):
        make()


def test_numbers_of_numpy_are_numbers():
    assert CFG(np.float32(3), delta=np.float64(0.5)) == CFG(3.0, delta=0.5)
    assert SkipLayer(np.int64(2), (np.int64(7),)) == SkipLayer(2.0, (7,))
    assert EarlyExit(1.0, np.int32(4)) == EarlyExit(1.0, 4)
    assert CFG(3.0, condition=np.int64(2), channels=np.int8(3)).reused(np.int64(2)) == CFG(3.0, condition=2, channels=3).reused(
        2
    )
    assert linear(np.int64(3)) == linear(3)
    assert Rescale(np.float32(0.5)) == Rescale(0.5)
    assert CFGZeroStar(np.int64(2)) == CFGZeroStar(2) and APG(np.int64(0), np.float32(2), 1) == APG(0.0, 2.0, 1.0)
    assert Window.steps(np.int64(1), np.int8(4)) == Window.steps(1, 4)
    assert Window.sigma(np.float32(0.25), 1) == Window.sigma(0.25, 1.0)
    assert SGG(CFG(3.0), SkipLayer(1.0, (2,)), np.float32(0.5)) == SGG(CFG(3.0), SkipLayer(1.0, (2,)), 0.5)


RUNS = [
    ({"guidance": 3.0}, TypeError, r"such as CFG\(4.5\), or its text .* got 3.0"),
    ({"guidance": "cgf"}, ValueError, "unknown guidance rule .cgf."),
    ({"guidance": SkipLayer(1.0, (12,))}, ValueError, "layer 12 .* layers 0 to 11"),
    ({"guidance": EarlyExit(1.0, 5)}, ValueError, "after layer 5; it has: 4"),
    ({"guidance": AutoGuidance(1.0)}, ValueError, "'weak'; the engine holds: main"),
    ({"guidance": CFG(2.0, condition=9)}, ValueError, "label 9 .* 0 to 4"),
    ({"guidance": CFG(2.0, condition=np.int64(9))}, ValueError, "label 9 .* 0 to 4"),
    ({"guidance": CFG(2.0, channels=5)}, ValueError, "channels 5 .* 3 latent channels"),
    ({"guidance": CFG(lambda sigma: NAN)}, ValueError, "nan at sigma"),
    ({"steps": 0}, ValueError, "got 0"),
    ({"steps": -3}, ValueError, "got -3"),
    ({"steps": 2.5}, TypeError, "got 2.5"),
    ({"steps": 5, "schedule": [1.0, 0.5, 0.0]}, ValueError, "steps is 5, but .* 2 steps"),
    ({"schedule": "cosine"}, ValueError, "'cosine'"),
    ({"schedule": "shift=x"}, ValueError, "'shift=x'"),
    ({"schedule": "shift=-1"}, ValueError, "-1"),
    ({"solver": "rk45"}, ValueError, "'rk45'"),
    ({"solver": ["euler"]}, ValueError, "euler"),
    ({"labels": [5]}, ValueError, "label 5 .* 0 to 4"),
    ({"labels": [-1]}, ValueError, "label -1"),
    ({"labels": [1.5]}, TypeError, "1.5"),
    ({"labels": []}, ValueError, "empty"),
    ({"labels": "a red leaf"}, ValueError, "has no class 'a red leaf'; it has 0 to 4, all, or names such as"),
    ({"labels": ["a red leaf"]}, ValueError, "has no class 'a red leaf'; it has 0 to 4, all, or names such as"),
    ({"labels": 3}, TypeError, "a list of whole numbers or names, got 3"),
    ({"labels": "3-9"}, ValueError, "class 5 is out of range: .* 0 to 4"),
    ({"prompt": "a red leaf"}, TypeError, "prompt"),
    ({"seeds": [1, 2, 3]}, ValueError, "3 seeds do not fit 2 samples"),
    ({"seeds": [1, -2]}, ValueError, "-2"),
    ({"seeds": [1, 0.5]}, TypeError, "0.5"),
    ({"seeds": "12"}, TypeError, "'12'"),
    ({"max_batch": 0}, ValueError, "0"),
    ({"max_batch": 1.5}, TypeError, "1.5"),
    ({"height": 0}, ValueError, "0 x 12"),
    ({"width": 7}, ValueError, "8 x 7"),
    ({"noise": torch.zeros(2, 3, 8, 8)}, ValueError, r"\(2, 3, 8, 8\)"),
    ({"noise": np.zeros((2, 3, 8, 12))}, TypeError, r"tensor of shape \(2, 3, 8, 12\), got a ndarray"),
    ({"noise": [1, 2]}, TypeError, "got a list"),
    ({"noise": torch.full((2, 3, 8, 12), NAN)}, ValueError, "noise must be real and finite"),
    ({"noise": torch.zeros(2, 3, 8, 12, dtype=torch.complex64)}, ValueError, "this torch.complex64 tensor"),
    ({"latents": torch.full((2, 3, 8, 12), NAN), "schedule": [0.5, 0.0]}, ValueError, "latents must be real and finite"),
    ({"labels": torch.tensor([True, False])}, TypeError, r"whole numbers or names, got tensor\(True\)"),
    ({"labels": [True]}, TypeError, "True"),
    ({"seeds": True}, TypeError, "True"),
    ({"steps": True}, TypeError, "True"),
    ({"steps": np.float64(3.0)}, TypeError, "3.0"),
    ({"step": 3}, TypeError, "step"),
]


@pytest.mark.parametrize(("options", "error", "value"), RUNS, ids=words)
def test_a_run_is_refused_before_any_call(engine, monkeypatch, options, error, value):
    monkeypatch.setattr("segue.engine.core.run_program", lambda *_: pytest.fail("the network was called"))
    with pytest.raises(error, match=value) as caught:
        engine.sample(**({"labels": [0, 1]} | options))
    assert "\n" not in str(caught.value)


def test_a_run_takes_numbers_of_numpy(engine):
    run = engine.sample(np.array([1, 4]), CFG(np.float32(2)), steps=np.int64(3), seeds=np.int64(7))
    assert run.seeds == (7, 8) and run.labels == (1, 4) and run.calls == 3
    assert torch.equal(run.latents, engine.sample([1, 4], CFG(2.0), steps=3, seeds=7).latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_engine_leaves_the_callers_network_as_it_was(dtype):
    network = tiny_sit().train()
    network.blocks[1].eval()
    network.pos_embed = network.pos_embed.double()
    before = {name: (id(tensor), tensor.dtype) for name, tensor in network.state_dict(keep_vars=True).items()}
    table, modes = network.pos_embed, [module.training for module in network.modules()]
    held = Engine(network, dtype=dtype).models["main"]
    assert {name: (id(tensor), tensor.dtype) for name, tensor in network.state_dict(keep_vars=True).items()} == before
    assert network.pos_embed is table and table.dtype == torch.float64
    assert [module.training for module in network.modules()] == modes
    assert {tensor.dtype for tensor in (*held.parameters(), held.pos_embed)} == {dtype}
    shared = all(a is b for a, b in zip(held.parameters(), network.parameters(), strict=True))
    assert shared == (dtype == torch.float32)  # only the table had to change: no weight is held twice


class Adapted(torch.nn.Module):
    """A linear layer with something around it, as adapters are: the weight is still there to be read."""

    def __init__(self, inner: torch.nn.Linear):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize("owner, name", [("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")])
def test_a_block_linear_that_is_more_than_its_weight_is_refused(owner, name):
    network, hooked = tiny_sit(), tiny_sit()
    part = getattr(network.blocks[1], owner)
    setattr(part, name, Adapted(getattr(part, name)))
    with pytest.raises(ValueError, match=rf"blocks\.1\.{owner}\.{name} is a .*Adapted, .* merge it first"):
        Engine(network)
    getattr(getattr(hooked.blocks[2], owner), name).register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=rf"blocks\.2\.{owner}\.{name} has a forward hook"):
        Engine(tiny_sit(), {"weak": hooked})


X, SIGMA = torch.zeros(2, 3, 8, 12), torch.full((2,), 0.5)


@pytest.mark.parametrize("x", [X[:1], X[:, :1], X[..., :1], X[:0], torch.zeros(4, 3, 8, 12)], ids=lambda x: f"{tuple(x.shape)}")
def test_a_denoiser_broadcasts_nothing(engine, x):
    denoiser = engine.denoiser(CFG(2.0), [0, 4])
    with pytest.raises(ValueError, match=r"x must have shape \(2, 3, 8, 12\), got \(\d, \d, \d, "):
        denoiser(x, SIGMA[: len(x)])
    with pytest.raises(ValueError, match=r"x must have shape \(1, 3, 8, 12\)"):
        engine.denoiser(CFG(2.0), [4])(X, SIGMA)


LOADED = [
    (([5], [1], X[:1]), ValueError, "label 5 .* 0 to 4"),
    (([-1], [1], X[:1]), ValueError, "label -1"),
    (([3], [1, 2, 3], X[:1]), ValueError, "3 seeds do not fit 1 samples"),
    (([3], [1], X), ValueError, r"shape \(1, 3, 8, 12\), got \(2"),
    (([3], [1], X[:1, :1]), ValueError, r"got \(1, 1, 8, 12\)"),
    ((["3"], [1], X[:1]), ValueError, "no class '3'"),
]


@pytest.mark.parametrize(("given", "error", "value"), LOADED)
def test_a_program_is_loaded_with_what_a_run_takes(engine, given, error, value):
    with pytest.raises(error, match=value):
        engine.load(engine.plan(CFG(2.0), 3), *given)


ENGINES = [
    ({"device": "tpu"}, "'tpu'"),
    ({"device": "abacus"}, "'abacus'"),
    ({"device": "cuda:99"}, "'cuda:99'"),
    ({"dtype": "float3"}, "'float3'; accepted: float32"),
    ({"dtype": torch.int32}, "int32"),
    ({"family": "dit"}, "family"),
    ({"graphs": True, "device": "cpu"}, "graphs=True needs a CUDA device"),
]


@pytest.mark.parametrize(("options", "value"), ENGINES)
def test_an_engine_is_refused(model, options, value):
    with pytest.raises(ValueError, match=value):
        Engine.from_pretrained(model, **options)


def test_further_networks_that_would_be_ignored_or_sampled_are_refused(model, folder):
    weak = save_tiny(folder / "weak.safetensors", seed=1)
    with pytest.raises(ValueError, match=r"names of their own: 'main' is .*tiny\.safetensors.*weak"):
        Engine.from_pretrained(model, models={"main": weak})
    network = Engine.from_pretrained(weak).models["main"]
    with pytest.raises(ValueError, match="'main' is the network that is sampled"):
        Engine(network, {"main": network})
    tiny_transformer("sd3").save_pretrained(folder / "mmdit")
    with pytest.raises(ValueError, match=r"network 'weak' is a SiT, and .* takes a MMDiT: both must take the same conditions"):
        Engine.from_pretrained(folder / "mmdit", models={"weak": weak})


def test_a_network_that_lies_on_the_device_asked_for_is_not_copied(engine, monkeypatch):
    network = engine.models["main"]
    assert Engine(network, device="cpu:0").models["main"] is network
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device(None) == resolve_device("cuda") == torch.device("cuda", 1)  # as a parameter there says
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


CHECKPOINTS = [
    ("missing.safetensors", "missing.safetensors"),
    ("truncated.safetensors", "truncated.safetensors is truncated"),
    ("header.safetensors", "header.safetensors is truncated"),
    ("garbage.pt", "garbage.pt is truncated or not"),
    ("cut.pt", "cut.pt is truncated or not"),
    ("misshaped.safetensors", r"1 mis-shaped \(blocks.3.attn.qkv.bias \[7\] for \[48\]\)"),
    ("lacking.safetensors", "4 missing"),
    ("pickled.pt", "functools.partial, which is code"),
]


@pytest.mark.parametrize(("name", "value"), CHECKPOINTS)
def test_a_broken_checkpoint_is_refused(broken, name, value):
    with pytest.raises((ValueError, FileNotFoundError), match=value):
        Engine.from_pretrained(broken / name)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(model, tmp_path, monkeypatch):
    """Runs a command that must be refused; returns its sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Engine, "sample", lambda *_, **__: pytest.fail("sampling began"))

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        given = "--model" in arguments or "--from" in arguments
        result = CliRunner().invoke(app, [*arguments, *([] if given else ["--model", str(model)])])
        assert result.exit_code == 2, result.exception
        assert result.stdout == ""
        assert result.stderr.startswith("segue: ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return result.stderr

    return run


ARGUMENTS = [
    (["-g", "cgf"], "'cgf'; known: none, cfg"),
    (["-g", "cgf"], "did you mean 'cfg'?"),
    (["-g", "cfg=2"], "; write cfg:scale=2"),
    (["-g", "slg(.5)"], "; write slg:weight=.5"),
    (["-g", "cfg:2"], "written option=value, as in cfg:scale=2, got '2'"),
    (["-g", "cfg:guidance_scale=4"], "channels, stop; it is called scale here"),
    (["-g", "cfg:scale=3-1"], "expected a number, got '3-1'; from 3 to 1 along the steps: scale=2,delta=1"),
    (["--model", "herbarum"], "did you mean 'herbarium'?"),
    (["-g", "cfg:scal=3"], "no option 'scal'; it has: scale"),
    (["-g", "cfg", "--layers", "7"], "no option 'layers'"),
    (["-g", "cfg + slg", "--scale", "4"], "scale 4 belongs to one rule"),
    (["-g", "cfg:scale=2", "--scale", "4"], "given twice, as 2 and as 4"),
    (["--guidnace", "cfg"], "No such option: --guidnace"),
    (["-g", "cfg", "--scale", "nan"], "nan"),
    (["-g", "cfg", "--scale", "much"], "'much'"),
    (["--layers", "12"], "layer 12 does not exist: herbarium has layers 0 to 11"),
    (["--layers", "9-7"], "'9-7'"),
    (["-g", "exit", "--exit-layer", "5"], "after layer 5; it has: 4"),
    (["-g", "ag"], "'weak'"),
    (["--switch", "1.5"], "1.5"),
    (["-g", "cfg", "--window", "sigma:0.8,0.2"], "0.8 to 0.2"),
    (["-g", "cfg", "--window", "steps:3,2"], "3 to 2"),
    (["-g", "cfg", "--window", "sigma:0.5,0.5"], "0.5 to 0.5"),
    (["-g", "cfg", "--window", "night"], "'night'"),
    (["--steps", "0"], "got 0"),
    (["--steps", "-4"], "got -4"),
    (["--steps", "many"], "'many'"),
    (["--steps", "28000000"], "steps must be at most 1048576, got 28000000"),
    (["--steps", "9" * 30], "steps must be at most 1048576, got 999"),
    (["--solver", "rk45"], "'rk45'; known: euler"),
    (["--schedule", "cosine"], "'cosine'; known:"),
    (["--dtype", "float3"], "'float3'"),
    (["--device", "abacus"], "'abacus'"),
    (["--device", "cuda:99"], "'cuda:99'"),
    (["--family", "dit"], "family"),
    (["--classes", "5"], "class 5 is out of range: herbarium has classes 0 to 4"),
    (["--classes", "a red leaf"], "no class 'a red leaf'"),
    (["--classes", "0-3", "--seeds", "1,2,3"], "3 seeds do not fit 4 pictures"),
    (["--seeds", "-1"], "'-1'"),
    (["--count", "0"], "0"),
    (["--count", "9" * 9], "one command draws at most 1048576 pictures, got 5 times 999999999"),
    (["--max-batch", "0"], "got 0"),
    (["--prompt", "a red leaf"], "class-label model and takes no prompt, got 'a red leaf'"),
    (["--model", "nowhere.safetensors"], "'nowhere.safetensors'"),
    (["--model", "SiT-XL/2"], "SiT-XL/2 is a size"),
    (["--out", "leaf.jpg"], "leaf.jpg"),
    (["--out", "all.png", "--no-grid"], "5 pictures without a grid need a folder, got the file all.png"),
    (["--zoom", "0"], "'0'"),
    (["leaves"], "leaves"),
]


@pytest.mark.parametrize(("arguments", "value"), ARGUMENTS, ids=words)
def test_sample_refuses(refused, arguments, value):
    assert value in refused("sample", *arguments)


@pytest.mark.parametrize(("name", "value"), [(name, name.split(".")[0]) for name, _ in CHECKPOINTS])
def test_sample_refuses_a_broken_checkpoint(refused, broken, name, value):
    assert value in refused("sample", "--model", str(broken / name))


@pytest.mark.parametrize("command", ["sample", "compare"])
def test_output_that_cannot_be_written_is_refused_before_sampling(refused, tmp_path, command):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for out in ("file/inner/one.png", "folder.png", "/proc/nowhere/one.png"):
        assert f"cannot write to {out}" in refused(command, "--out", out)
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_output_folder_that_can_be_made_is_not_made_for_a_refused_run(refused):
    refused("sample", "--out", "new/folder", "--steps", "0")


OTHERS = [
    (["compare", "-r", "cfg", "-r", "cgf"], "'cgf'"),
    (["compare", "--out", "folder"], "folder"),
    (["compare", "--steps", "0"], "got 0"),
    (["plan", "--layers", "12"], "layer 12"),
    (["plan", "--model", "DiT-XXL/2"], "'XXL/2'"),
    (["plan", "--model", "DiT-XL/3", "-g", "none"], "'XL/3'"),
    (["plan", "--model", "DiT-XL/2", "-g", "exit"], "exit needs layer: model 'DiT' has no default for it"),
    (["smaple"], "'smaple'"),
]


@pytest.mark.parametrize(("arguments", "value"), OTHERS, ids=words)
def test_other_commands_refuse(refused, arguments, value):
    assert value in refused(*arguments)


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(folder, model):
    """The record of a picture of the tiny model."""
    drawn = CliRunner().invoke(
        app, ["sample", "--model", str(model), "--steps", "2", "--classes", "1", "--out", str(folder / "drawn.png")]
    )
    assert drawn.exit_code == 0
    return json.loads(Image.open(folder / "drawn.png").info["segue"])


def picture_with(path, chunk: str | None):
    info = PngInfo()
    if chunk is not None:
        info.add_text("segue", chunk)
    Image.new("RGB", (12, 8)).save(path, pnginfo=info)
    return path


CHANGES = [
    ({"format": 99}, "its format is 99"),
    ({"rule": "cgf"}, "'cgf'"),
    ({"index": 7}, "its index 7 is out of range"),
    ({"labels": None}, "its labels are None"),
    ({"seeds": [1, 2]}, "1 labels, 2 seeds"),
    ({"plan": {}}, "lacks 'schedule'"),
    ({"index": None}, "its layout is None"),
    ({"sheet": {}}, "a sheet of several rules"),
    ({"rule": "cfg:scale=2"}, "resolves the weights of 'cfg:scale=2' differently"),
]


@pytest.mark.parametrize(("change", "value"), CHANGES, ids=words)
def test_a_record_that_does_not_hold_is_refused(refused, tmp_path, record, change, value):
    picture_with(tmp_path / "picture.png", json.dumps(record | change))
    assert value in refused("sample", "--from", "picture.png")


def test_a_file_without_a_usable_record_is_refused(refused, tmp_path, record):
    (tmp_path / "text.png").write_text("no picture")
    picture_with(tmp_path / "plain.png", None)
    picture_with(tmp_path / "broken.png", "{")
    picture_with(tmp_path / "list.png", "[1]")
    del record["plan"]
    picture_with(tmp_path / "lacking.png", json.dumps(record))
    assert "text.png is not a picture" in refused("sample", "--from", "text.png")
    assert "plain.png carries no 'segue' record" in refused("sample", "--from", "plain.png")
    assert "not valid JSON" in refused("sample", "--from", "broken.png")
    assert "list.png holds no record" in refused("sample", "--from", "list.png")
    assert "lacks 'plan'" in refused("sample", "--from", "lacking.png")
    assert "nowhere.png" in refused("sample", "--from", "nowhere.png")


WITH_A_RECORD = {
    "model",
    "weak",
    "vae",
    "adapter",
    "device",
    "image",
    "out",
    "force",
    "json",
    "picture",
    "help",
}  # where, not what
WITH_A_RECORD |= {"guidance", "scale", "weight", "layers", "switch", "exit_layer", "window", "delta", "refresh"}  # another rule


@pytest.mark.parametrize("option", get_command(app).commands["sample"].params, ids=lambda o: o.name)
def test_options_that_the_record_holds_are_refused(refused, tmp_path, record, option):
    """Every option of the command, so that none is left without effect."""
    picture_with(tmp_path / "picture.png", json.dumps(record))
    if option.name not in WITH_A_RECORD:
        name = next(name for name in option.opts if name.startswith("--"))
        answer = refused("sample", "--from", "picture.png", name, *([] if option.is_flag else ["1"]))
        shards = f"{name} 1 is for samples that go into one file"
        assert (shards if option.name in ("rank", "world") else f"--from takes {name} from the picture; leave") in answer
