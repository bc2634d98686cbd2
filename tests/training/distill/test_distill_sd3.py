"""A LoRA that was distilled from a Stable Diffusion 3: diffusers, peft and the engine draw the same by it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_sd3 import T5_TOKENS, tiny_pipeline
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.engine import Engine
from segue.models.adapted import AdapterSpec
from segue.models.low_rank import LowRankSpec
from segue.training.distill.assembly import DEFAULT_SETTINGS, Teaching, make_trainer
from segue.training.distill.prompt_student import TARGETS, adapted_modules
from segue.training.distill.spec import TrajectorySpec

# A run by two implementations of one network in fp32, whose numbers are of order 1
SAME_LATENTS = 1e-5
SETTINGS = replace(DEFAULT_SETTINGS, steps=4, batch_size=2, learning_rate=2e-2, warmup=1, ema=0.0, checkpoint_every=2)
LENGTH = {"max_sequence_length": T5_TOKENS}


@pytest.fixture
def folder(tmp_path, seed):
    """A saved pipeline, and prompts beside it."""
    tiny_pipeline(seed=seed).save_pretrained(tmp_path / "sd3")
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \nabc\n")
    return tmp_path / "sd3"


def teaching_of(folder, **changes):
    prompts, adapter = str(folder.parent / "prompts.txt"), AdapterSpec(LowRankSpec(2, alpha=3.0))
    values = {"prompts": prompts, "adapter": adapter, "trajectories": TrajectorySpec(4, own=0.5, levels=2)}
    return Teaching(str(folder), "cfg:scale=3", **values | changes)


def drawn_by(pipe, noise):
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    return pipe("a cat", **settings, **LENGTH).images


def test_diffusers_and_peft_read_the_lora_that_the_engine_draws_by(folder, tmp_path):
    import diffusers
    from peft import PeftModel

    lora = tmp_path / "lora"
    trainer = make_trainer(teaching_of(folder), SETTINGS, lora, "new")
    assert trainer.source.num_classes == 3  # blank lines are no prompts
    losses = []
    trainer.run(lambda _, found: losses.append(found["loss"].item()))
    engine = Engine.from_pretrained(folder, adapter=lora, device="cpu")
    assert "stands for cfg:scale=3" in engine.explain()
    noise = engine.draw_noise(engine.plan("none", 4), [5])
    ours = engine.generate("a cat", guidance="none", steps=4, noise=noise, output="latent", **LENGTH).latents
    plain = diffusers.StableDiffusion3Pipeline.from_pretrained(folder)
    assert (drawn_by(plain, noise) - ours).abs().max() > 0.01
    plain.load_lora_weights(lora)
    assert (drawn_by(plain, noise) - ours).abs().max() < SAME_LATENTS
    other = diffusers.StableDiffusion3Pipeline.from_pretrained(folder)
    other.transformer = PeftModel.from_pretrained(other.transformer, lora).merge_and_unload()
    assert (drawn_by(other, noise) - ours).abs().max() < SAME_LATENTS
    with pytest.warns(UserWarning, match="guides on top of the LoRA lora, which holds cfg:scale=3 already"):
        engine.generate("a cat", guidance="cfg:scale=2", steps=2, seeds=0, output="latent", **LENGTH)


@pytest.mark.slow
def test_the_teacher_has_no_lora_and_a_resumed_run_equals_one_that_was_not(folder, tmp_path):
    whole = make_trainer(teaching_of(folder), SETTINGS, tmp_path / "whole", "new")
    labels, state = [0, 1], torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    before = whole.task.teacher.velocity(labels)(state, 1)
    whole.run()
    assert torch.equal(whole.task.teacher.velocity(labels)(state, 1), before)
    parts = make_trainer(teaching_of(folder), SETTINGS, tmp_path / "parts", "new")
    parts.run(lambda trainer, _: trainer.step < 2)
    make_trainer(teaching_of(folder), SETTINGS, tmp_path / "parts", "resume").run()
    files = [(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("whole", "parts")]
    expected, found = map(load_file, files)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_targets_name_what_each_architecture_has():
    medium, large = (tiny_pipeline(kind).transformer for kind in ("sd3.5-medium", "sd3.5-large"))
    spec = LowRankSpec(2, targets=("qkv", "proj"), layers=(0, 5))
    assert set(adapted_modules(medium, spec)) - set(adapted_modules(large, spec)) == {
        f"transformer_blocks.0.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert "transformer_blocks.5.attn.to_add_out" not in adapted_modules(large, spec)  # the text ends in the last block
    block = medium.transformer_blocks[0]
    held = {f"transformer_blocks.0.{name}" for name, part in block.named_modules() if isinstance(part, torch.nn.Linear)}
    assert held == set(adapted_modules(medium, LowRankSpec(2, targets=tuple(TARGETS), layers=(0,))))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompts": None}, "give a text file of them"),
        ({"adapter": AdapterSpec(LowRankSpec(2), (0.0, 2.0))}, "leave --scales out"),
        ({"adapter": AdapterSpec(LowRankSpec(2, layers=(6,)))}, "has the layers 0 to 5, got 6"),
        ({"reading": {"heads": 3}}, "states what it is"),
    ],
)
def test_what_an_sd3_does_not_take_is_refused(folder, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(teaching_of(folder, **changes), SETTINGS, tmp_path / "lora", "new")
    assert not (tmp_path / "lora").exists()


def test_a_file_without_prompts_and_a_lora_of_another_pipeline_are_refused(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n  \n")
    with pytest.raises(ValueError, match="holds no prompt"):
        make_trainer(teaching_of(folder), SETTINGS, tmp_path / "lora", "new")
    with pytest.raises(FileNotFoundError, match="is no LoRA"):
        Engine.from_pretrained(folder, adapter=tmp_path, device="cpu")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        Engine.from_pretrained(folder, adapter=tmp_path / "broken.safetensors", device="cpu")
    with pytest.raises(ValueError, match="adapter_scale=1 does not apply"):
        Engine.from_pretrained(folder, adapter=tmp_path, adapter_scale=1.0, device="cpu")


@pytest.mark.slow
def test_the_commands_draw_by_a_lora_and_warn_of_guidance_on_top(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(teaching_of(folder), replace(SETTINGS, steps=1), tmp_path / "lora", "new").run()
    call = ["--model", "sd3", "--prompt", "a cat", "--steps", "2"]
    runner = CliRunner()
    drawn = runner.invoke(app, ["sample", *call, "--adapter", "lora", "--out", "one.png"])
    assert drawn.exit_code == 0 and drawn.stdout.startswith("Unguided"), drawn.output
    again = runner.invoke(app, ["sample", "--from", "one.png", "--out", "again.png"])
    assert "identical to" in again.stdout, again.output
    guided = runner.invoke(app, ["sample", *call, "-g", "cfg:scale=2", "--adapter", "lora", "--out", "two.png"])
    assert "guides on top of the LoRA lora, which holds cfg:scale=3 already" in guided.stderr
    compared = runner.invoke(app, ["compare", *call, "-r", "none", "--adapter", "lora", "--out", "sheet.png"])
    assert "LoRA lora" in compared.stdout, compared.output
    missing = runner.invoke(app, ["sample", *call, "--adapter", "none", "--out", "three.png"])
    assert missing.exit_code == 2 and "is no LoRA" in missing.stderr
