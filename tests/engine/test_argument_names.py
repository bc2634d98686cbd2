"""A keyword of diffusers is refused by the name it has here; diffusers' own signatures say what people will try."""

import inspect

import pytest
from tiny_dit import tiny_dit_pipeline
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

import segue
from segue import (
    APG,
    CFG,
    SGG,
    AutoGuidance,
    CFGZeroStar,
    EarlyExit,
    Engine,
    PerturbedLayers,
    Rescale,
    SkipLayer,
    compile_plan,
)
from segue.__main__ import app
from segue.bench.quality import commands as quality_commands
from segue.engine.argument_names import ADVICE, FURTHER_OPTIONS, RENAMED, RULE_OPTIONS, public_name
from segue.engine.cli import commands as engine_commands
from segue.engine.prompts.engine import PromptEngine
from segue.engine.prompts.pipe_core import PipeCore
from segue.engine.rules.presets import as_rule

LOADING = ("torch_dtype", "device_map", "use_safetensors", "low_cpu_mem_usage", "subfolder", "cache_dir", "local_files_only")
ENTRIES = [
    Engine.from_pretrained,
    Engine.from_pipe,
    Engine.plan,
    Engine.sample,
    Engine.denoiser,
    PromptEngine.plan,
    PromptEngine.sample,
    PromptEngine.generate,
    PromptEngine.denoiser,
    PipeCore.encode,
    segue.attach,
    compile_plan,
]
RULES = [CFG, SGG, APG, AutoGuidance, CFGZeroStar, EarlyExit, PerturbedLayers, Rescale, SkipLayer]


def arguments_of_diffusers() -> list[str]:
    """Those of a call of its pipelines for our models, and of loading one."""
    import diffusers

    names = ["StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"]
    names += ["StableDiffusion3PAGPipeline", "DiTPipeline"]
    calls = [inspect.signature(getattr(diffusers, name).__call__).parameters for name in names]
    return sorted({name for call in calls for name in call if name != "self"} | set(LOADING))


def taken(entry) -> set[str]:
    """The keywords of an entry; ``generate`` hands further ones to ``sample``."""
    own = set(inspect.signature(entry).parameters)
    return own | set(inspect.signature(PromptEngine.sample).parameters) if "options" in own else own


@pytest.mark.parametrize("entry", [*ENTRIES, *RULES], ids=lambda entry: entry.__qualname__)
def test_every_argument_of_diffusers_is_taken_or_refused_with_advice(entry):
    for name in set(arguments_of_diffusers()) - taken(entry):
        with pytest.raises(TypeError) as caught:
            entry(**{name: 1})
        text = str(caught.value)
        assert text.startswith(f"{public_name(entry)}() takes no {name!r}: ") and "\n" not in text
        assert not any(internal in text for internal in ("EngineCore", "PromptEngine", "PipeCore"))
        said = text.split(": ", 1)[1]
        if name in RENAMED:
            ours, elsewhere = RENAMED[name]
            assert said == (f"it is called {ours} here" if ours in taken(entry) else elsewhere)
        else:
            assert said == ADVICE[name]


def test_the_advice_names_what_is_there():
    """A keyword that is called something here is taken under that name by an entry; a rule that is written out parses."""
    everywhere = set().union(*map(taken, [*ENTRIES, CFG]))
    assert {ours for ours, _ in RENAMED.values()} <= everywhere
    assert not (set(RENAMED) | set(ADVICE)) & set(inspect.signature(PromptEngine.sample).parameters) - {
        *("height", "width", "latents", "strength"),
    }
    public = {name: getattr(segue, name) for name in segue.__all__}
    for advice in ADVICE.values():
        _, written, rule = advice.partition("guidance=")
        if written and "layers, kind" not in rule:
            for code in rule.split(" or as text guidance="):
                assert as_rule(eval(code, public)).terms


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: CFG(guidance_scale=4), "CFG() takes no 'guidance_scale': it is called scale here"),
        (lambda: SkipLayer(0.1, layer=7), "SkipLayer() takes no 'layer': did you mean 'layers'?"),
        (lambda: SGG(1.5, 0.1), "SGG(): missing a required argument: 'switch'; it takes strong, weak, switch"),
        (lambda: CFG(4, 5), "CFG(): too many positional arguments; it takes scale, delta, window, condition, channels"),
        (lambda: SGG(1.5, CFG(2), 0.5), "strong must be a rule such as CFG(4.5) or SkipLayer(3.0, layers=(7, 8, 9)), got 1.5"),
        (lambda: SGG(CFG(2), 0.1, 0.5), "weak must be a rule such as CFG(4.5) or SkipLayer(3.0, layers=(7, 8, 9)), got 0.1"),
    ],
)
def test_rules_say_which_argument_is_meant_or_missing(call, said):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("command", "option", "said"),
    [
        ("sample", "--num-inference-steps", "it is called --steps here"),
        ("sample", "--num-images-per-prompt", "it is called --count here"),
        ("sample", "--guidance-scale", "write the rule: -g cfg:scale=4.5"),
        ("compare", "--cfg", "write the rule: -g cfg:scale=4.5"),
        ("compare", "--generator", "it is called --seeds here"),
        ("plan", "--scheduler", "it is called --solver and --schedule here"),
        ("sample", "--negative-promt", "did you mean '--negative-prompt'?"),
        ("sample", "--class-labels", "it is called --classes here"),
        ("score", "--batch-size", "it is called --batch here"),
        ("doctor", "--guidance-scale", "segue doctor --help lists them"),
        ("plan", "-x", "segue plan --help lists them"),
    ],
)
def test_options_of_diffusers_are_refused_by_their_names_here(command, option, said):
    result = CliRunner().invoke(app, [command, option, "4"], prog_name="segue")
    assert (result.exit_code, result.stderr) == (2, f"segue: No such option: {option}; {said}\n")


def test_the_rules_and_options_that_refusals_write_are_there():
    for advice in set(RULE_OPTIONS.values()):
        assert as_rule(advice.split(": -g ")[1].strip("'")).terms
    known = {name for entry in (engine_commands.sample, quality_commands.score) for name in inspect.signature(entry).parameters}
    assert {name for names in FURTHER_OPTIONS.values() for name in names} <= known
    assert not set(FURTHER_OPTIONS) & set(RULE_OPTIONS)


@pytest.mark.parametrize(("given", "said"), [("step", "did you mean 'steps'?"), ("zzz", "it takes labels, guidance, steps, ")])
def test_other_unknown_keywords_are_refused_with_those_that_are_known(given, said):
    with pytest.raises(TypeError, match=r"Engine\.sample\(\) takes no") as caught:
        Engine(tiny_sit(), device="cpu").sample([0], **{given: 1})
    assert said in str(caught.value)


def test_live_engines_and_attachments_say_it_too():
    pipe, dit = tiny_pipeline(num_layers=2, dual_attention_layers=(0,)), tiny_dit_pipeline()
    with pytest.raises(TypeError, match="takes no 'num_inference_steps': it is called steps here"):
        Engine.from_pipe(pipe).generate("leaf", num_inference_steps=3)
    for each in (pipe, dit):
        with pytest.raises(TypeError, match=r"attach\(\) takes no 'guidance_scale': write the rule, guidance=CFG"):
            segue.attach(each, guidance_scale=4.0)
    with pytest.raises(TypeError, match="is a class-label model and takes no prompt, got 'leaf'"):
        Engine.from_pipe(dit).generate(prompt="leaf", num_inference_steps=3)
