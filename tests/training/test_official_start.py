"""Fine-tuning of an official DiT for classes in superclasses: what is kept equals the original, and what is trained."""

import argparse

import pytest
import torch
from official_dit import forward, random_state
from training_fixtures import tiny_settings

from segue.models.weights import load_network
from segue.training.loop import Trainer
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.starting_weights import starting_weights
from segue.training.streams import stream_generator

HEADS, NULL = 2, 7  # of the original: 7 classes, and the null label after them
# absolute, on outputs of unit size: some 60 fp32 products and norms in a row, each rounding to 6e-8, in another order
PARITY = 2e-5
PARTS = "labels,biases,norms"


class Buds:
    """Random latents of five species in three genera."""

    name, shape, num_classes, parents, class_names = "buds", (4, 6, 6), 5, (0, 2, 1, 1, 0), ()

    def batch(self, index, size, seed):
        generator = stream_generator(seed, index)
        return torch.randn(size, *self.shape, generator=generator), torch.randint(5, (size,), generator=generator)

    def fingerprint(self):
        return {"name": self.name}


@pytest.fixture(params=("published", "training"))
def checkpoint(request, tmp_path, seed):
    """A path and the state in it: the official names in a ``.pt``, alone as published, or as the average of a training run.

    The output of 4 channels has a learned variance beside each.
    """
    state, path = random_state(seed), tmp_path / "DiT-tiny.pt"
    entries = {"model": random_state(seed + 1), "ema": state, "opt": {}, "args": argparse.Namespace(image_size=48)}
    torch.save(state if request.param == "published" else entries, path)
    return path, state


def begun_from(checkpoint):
    return starting_weights(checkpoint[0], Buds(), family="dit", heads=HEADS, affine_norms=True)


def trainer_of(begun, folder, **changes):
    settings = tiny_settings(trained=PARTS, dropout=LabelDropout(0.2, 0.2), batch_size=20, **changes)
    return Trainer(begun.spec, settings, folder, source=Buds(), initial=begun.tensors)


def test_all_but_the_labels_is_the_original(checkpoint, tmp_path, seed):
    """With tables that say what the original's said: genus ``p`` is its class ``p``, species say nothing more."""
    begun = begun_from(checkpoint)
    spec, state = begun.spec, checkpoint[1]
    assert (spec.prediction, spec.channels, spec.out_channels, spec.exits) == ("epsilon", 4, 8, ())
    assert (spec.num_classes, spec.parents, spec.affine_norms, begun.new) == (5, Buds.parents, True, ("the label tables",))
    model = trainer_of(begun, tmp_path / "run").model.eval()
    tables, original = model.embedders[0].y_embedder, state["y_embedder.embedding_table.weight"]
    generator = torch.Generator().manual_seed(seed)
    x, times = torch.randn(9, 4, 6, 6, generator=generator), torch.tensor([0.0, 1, 17, 333, 481, 640, 777, 998, 999])
    labels = torch.arange(9)  # species, genera, null
    with torch.no_grad():
        tables.class_table.weight.zero_()
        tables.parent_table.weight.copy_(original[[0, 1, 2, NULL]])
        found = model(x, times, labels)
    as_said = torch.tensor([*Buds.parents, 0, 1, 2, NULL])
    assert (found - forward(state, x, times, as_said, HEADS)).abs().max() < PARITY


def test_labels_biases_and_norms_are_trained_and_nothing_else(checkpoint, tmp_path):
    """By name: no matrix but the tables; the averages that are written have changed there alone."""
    begun = begun_from(checkpoint)
    trainer = trainer_of(begun, tmp_path / "run", steps=3)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    expected = {f"blocks.{layer}.{linear}.bias" for layer in range(3) for linear in linears}
    expected |= {f"blocks.{layer}.norm{n}.{each}" for layer in range(3) for n in (1, 2) for each in ("weight", "bias")}
    expected |= {f"embedders.0.t_embedder.mlp.{index}.bias" for index in (0, 2)}
    expected |= {f"embedders.0.y_embedder.{table}_table.weight" for table in ("parent", "class")}
    expected |= {"x_embedder.proj.bias", "final_layer.linear.bias", "final_layer.adaLN_modulation.1.bias"}
    for network in (trainer.model, load_network(tmp_path / "run")[0]):
        assert {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])} == expected
    frozen = {name.removeprefix("embedders.0."): value for name, value in before.items() if name not in expected}
    assert all(torch.equal(value, checkpoint[1][name]) for name, value in frozen.items())
    assert frozen.keys() == {name for name in checkpoint[1] if name.endswith(".weight") and "y_embedder" not in name}
    variance = [state["final_layer.linear.bias"].view(4, 8)[:, 4:] for state in (trainer.model.state_dict(), before)]
    assert (variance[0] != variance[1]).all(), "the variance is learned too"
