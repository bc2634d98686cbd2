"""Autoguidance by further networks wherever a rule runs: one step is ``1 + w`` times one network's less ``w`` the other's."""

import json

import pytest
import torch
from attached_runs import PATHS, draw, forced, relative_error
from PIL import Image
from tiny_dit import tiny_dit_pipeline
from tiny_dit import tiny_transformer as tiny_dit
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline, tiny_transformer
from typer.testing import CliRunner

import segue
from segue import AutoGuidance, Engine, SkipLayer
from segue.__main__ import app
from segue.models.mmdit_diffusers import from_diffusers

WEIGHT = 1.5
RULE = AutoGuidance(WEIGHT)
ROUNDING = 2e-5  # a few hundred sums in fp32 in another order
SMALL = {"num_layers": 3, "dual_attention_layers": (0,)}
FORMS = ("pipeline", "folder", "ours")
SMALLER = {"num_layers": 2, "dual_attention_layers": ()}


def weak_transformer():
    return tiny_transformer(seed=9, **SMALLER)


@pytest.fixture(scope="module")
def weak_folder(tmp_path_factory):
    """A transformer's folder, and a whole pipeline's."""
    folder = tmp_path_factory.mktemp("weak")
    weak_transformer().save_pretrained(folder / "alone")
    tiny_pipeline(seed=3, **SMALL).save_pretrained(folder / "main")
    return folder


def one_step(pipe):
    return draw(pipe, num_inference_steps=1, guidance_scale=1.0)


@pytest.fixture(scope="module")
def expected():
    """By diffusers alone: the same pipeline with one transformer and with the other."""
    pipe = tiny_pipeline(seed=3, **SMALL)
    strong = one_step(pipe)
    pipe.transformer = weak_transformer()
    return (1 + WEIGHT) * strong - WEIGHT * one_step(pipe)


def weak_pipe():
    pipe = tiny_pipeline(seed=3, **SMALL)
    pipe.transformer = weak_transformer()
    return pipe


@pytest.mark.parametrize(("path", "form"), [*((path, "module") for path in PATHS), *(("packed", form) for form in FORMS)])
def test_an_attached_rule_takes_a_weak_transformer(path, form, weak_folder, expected):
    forms = {"module": weak_transformer, "pipeline": weak_pipe, "folder": lambda: weak_folder / "alone"}
    forms["ours"] = lambda: from_diffusers(weak_transformer())
    pipe = tiny_pipeline(seed=3, **SMALL)
    with forced(pipe, path):
        attachment = segue.attach(pipe, RULE, models={"weak": forms[form]()})
        found = one_step(pipe)
        assert relative_error(found, expected) < ROUNDING
        assert attachment.plan.cost.evaluations == 2 and attachment.plan.specs["weak"].depth == 2
        assert torch.equal(one_step(pipe), found)
    segue.attach(pipe, SkipLayer(1.0, (1,)))  # again: rule and models are replaced
    with pytest.raises(ValueError, match="no network named 'weak'"):
        segue.attach(pipe, RULE)
    segue.detach(pipe)


def test_an_engine_on_a_live_pipeline_takes_one(weak_folder, expected):
    pipe = tiny_pipeline(seed=3, **SMALL)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    how = {"steps": 1, "noise": noise, "max_sequence_length": T5_TOKENS, "output": "latent"}
    for weak in (weak_transformer(), weak_folder / "alone"):
        engine = Engine.from_pipe(pipe, models={"weak": weak})
        assert relative_error(engine.generate("leaf", guidance=RULE, **how).latents, expected) < ROUNDING
    saved = Engine.from_pretrained(weak_folder / "main", models={"weak": str(weak_folder / "alone")})
    assert relative_error(saved.generate("leaf", guidance=RULE, **how).latents, expected) < ROUNDING
    embeddings = saved.encode("leaf", None, max_sequence_length=T5_TOKENS)
    bare = Engine.from_pretrained(weak_folder / "main" / "transformer", models={"weak": weak_folder / "alone"})
    run = bare.sample(embeddings, RULE, steps=1, noise=noise, schedule=[1.0, 0.0])
    assert relative_error(run.latents, expected) < ROUNDING


def test_a_dit_pipeline_and_its_engine_take_one():
    pipe, weak = tiny_dit_pipeline(classes=1000), tiny_dit(5, classes=1000, layers=2)

    def image():
        how = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(7), "output_type": "np"}
        decoded = []
        before, pipe.vae.decode = pipe.vae.decode, lambda latents, **_: decoded.append(latents) or before(latents)
        try:
            pipe(class_labels=[3], guidance_scale=1.0, **how)
        finally:
            pipe.vae.decode = before
        return decoded[0]

    strong, main = image(), pipe.transformer
    pipe.transformer = weak
    expected = (1 + WEIGHT) * strong - WEIGHT * image()
    pipe.transformer = main
    segue.attach(pipe, RULE, models={"weak": weak})
    assert relative_error(image(), expected) < ROUNDING
    segue.detach(pipe)
    noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(7))
    both = Engine.from_pipe(pipe, models={"weak": weak}).sample([3], RULE, steps=1, noise=noise).latents
    alone = [Engine.from_pipe(each).sample([3], steps=1, noise=noise).latents for each in (pipe, tiny_weak(pipe, weak))]
    assert relative_error(both, (1 + WEIGHT) * alone[0] - WEIGHT * alone[1]) < ROUNDING


def tiny_weak(pipe, weak):
    from diffusers import DiTPipeline

    return DiTPipeline(weak, pipe.vae, pipe.scheduler)


def test_networks_that_do_not_fit_are_refused_and_those_given_stay_as_they_are():
    pipe, sit = tiny_pipeline(seed=3, **SMALL), tiny_sit()
    for weak, error, message in (
        (sit, ValueError, "network 'weak' is a SiT, and .* takes a MMDiT: both must take the same conditions"),
        (torch.nn.Linear(2, 2), TypeError, "SD3Transformer2DModel is needed, got Linear"),
        (3, TypeError, "a file, a folder, a pipeline or a module, got 3"),
        (
            tiny_transformer(seed=1, joint_attention_dim=32, **SMALLER),
            ValueError,
            "differs from the main one in one of: .*text_dim",
        ),
    ):
        with pytest.raises(error, match=message):
            segue.attach(pipe, RULE, models={"weak": weak})
    with pytest.raises(ValueError, match="'main' is the network that is sampled"):
        segue.attach(pipe, RULE, models={"main": weak_transformer()})
    with pytest.raises(TypeError, match=r"as in \{'weak': 'smaller.safetensors'\}, got \['weak'\]"):
        Engine.from_pipe(pipe, models=["weak"])
    weak = weak_transformer().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in weak.state_dict().items()}
    segue.attach(pipe, RULE, models={"weak": weak})
    one_step(pipe)
    segue.detach(pipe)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weak.state_dict().items())
    assert all(parameter.requires_grad for parameter in weak.parameters())


@pytest.mark.slow
def test_the_command_line_takes_one_for_prompts_and_records_it(weak_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.stderr or result.exception
        return result.stdout

    options = ["-g", "ag:weight=1.5", "-p", "leaf", "--steps", 2, "--seeds", 3]
    run("sample", "--model", weak_folder / "main", "--weak", weak_folder / "alone", *options, "--out", "a.png")
    engine = Engine.from_pretrained(weak_folder / "main", models={"weak": weak_folder / "alone"})
    drawn = engine.generate("leaf", guidance=RULE, steps=2, seeds=[3])
    assert Image.open("a.png").tobytes() == drawn.images[0].tobytes()
    for file in ("a.png", drawn.save("b.png")[0]):
        assert json.loads(run("sample", "--from", file, "--out", f"again-{file}", "--json"))["identical"]
    assert "cond of weak (w 1.5)" in run("plan", "--model", weak_folder / "main", "--weak", weak_folder / "alone", *options[:2])
