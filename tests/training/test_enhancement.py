"""An enhancer's training: its pairs, its task, its recipe, and what is refused."""

import pytest
import torch
from training_fixtures import tiny_settings
from typer.testing import CliRunner

from segue.__main__ import app
from segue.models.enhancer import Enhancer, EnhancerSpec, load_enhancer
from segue.models.spectrum import back_projected, reduce
from segue.training.data.herbarium import Herbarium
from segue.training.data.picture_pairs import HerbariumPairs, packed, unpacked
from segue.training.enhancement import NOISE, EnhancementTask
from segue.training.export import export_run
from segue.training.loop import Trainer
from segue.training.recipes import get_recipe

SPEC = EnhancerSpec("small", 3, 8, 1)


def test_pairs_are_the_same_leaves_at_two_sizes(seed):
    source = HerbariumPairs(16)
    samples, labels = source.batch(3, 5, seed)
    small, large = unpacked(samples, 3, 2)
    assert samples.shape[1:] == source.shape == (15, 16, 16) and torch.equal(packed(small, large), samples)
    assert (small.shape, large.shape) == ((5, 3, 16, 16), (5, 3, 32, 32))
    # drawn one by one at its own size, the averages of four pixels are near: other leaves differ by ten times as much
    near = torch.nn.functional.avg_pool2d(large, 2)
    assert (near - small).abs().mean() < 0.1 * (near - small.roll(1, 0)).abs().mean() + 0.05
    for size, pictures in ((16, small), (32, large)):
        alone, species = Herbarium(size).batch(3, 5, seed)
        assert torch.equal(alone, pictures) and torch.equal(species, labels)


def test_only_what_the_smaller_picture_lacks_is_learnt(seed):
    """A perfect enhancer has no loss, whatever the low frequencies of the larger picture are; no detail has theirs."""
    task, generator = EnhancementTask(SPEC), torch.Generator().manual_seed(seed)
    samples, labels = HerbariumPairs(16).batch(0, 4, seed)
    small, large = task.draw(samples, labels, generator)
    clean, _ = unpacked(samples, 3, 2)
    assert 0 < (small - clean).std() < 2 * NOISE and torch.equal(large, unpacked(samples, 3, 2)[1])
    perfect = back_projected(large, small)
    assert float(task.losses(lambda x: perfect, (small, large))["loss"]) < 1e-6
    assert torch.allclose(reduce(perfect, 16, 16), small, atol=1e-5)
    nothing = task.losses(Enhancer(SPEC).initialize().requires_grad_(False), (small, large))["loss"]
    assert float(nothing) > 0.01


def test_a_run_learns_and_is_exported(tmp_path, seed):
    settings = tiny_settings(steps=20, batch_size=4, learning_rate=5e-3, ema=0.0)
    trainer = Trainer(SPEC, settings, tmp_path / "run", source=HerbariumPairs(16))
    pair = unpacked(HerbariumPairs(16).batch(0, 32, 9)[0], 3, 2)
    before = trainer.task.losses(trainer.model, pair)["loss"].item()
    trainer.run()
    assert trainer.task.losses(trainer.model, pair)["loss"].item() < 0.98 * before
    model = export_run(tmp_path / "run", tmp_path / "small.safetensors")
    x = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    assert torch.allclose(load_enhancer(tmp_path / "small.safetensors")(x), model.float()(x), atol=1e-6)
    again = Trainer(SPEC, settings, tmp_path / "run", "resume", source=HerbariumPairs(16))
    assert again.step == 20


def test_the_recipe_is_the_bundled_one():
    recipe, bundled = get_recipe("herbarium-enhancer"), load_enhancer("herbarium-enhancer")
    assert bundled.spec == recipe.spec and recipe.source.shape[0] == 15


@pytest.mark.parametrize(
    ("options", "words"),
    (
        (("--size", "S/2"), "is an enhancer, which takes no --size"),
        (("--class-dropout", "0.1"), "herbarium-enhancer is an enhancer, which takes no --class-dropout"),
        (("--objective", "uncond"), "which takes no --objective"),
        (("--affine-norms",), "is an enhancer, which takes no --affine-norms"),
        (("--preview-every", "5"), "draws no pictures"),
        (("--data", "herbarium"), "is trained on pairs of pictures that its recipe draws"),
    ),
)
def test_options_of_other_networks_are_refused(options, words, tmp_path):
    command = ["train", "--recipe", "herbarium-enhancer", "--device", "cpu", "--out", str(tmp_path / "run"), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()


def test_samples_that_are_no_pairs_are_refused(seed):
    with pytest.raises(ValueError, match="pairs of pictures 2 apart have 15 channels, got samples of 3"):
        unpacked(torch.zeros(1, 3, 8, 8), 3, 2)
