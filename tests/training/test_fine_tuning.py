"""Partial fine-tuning and runs that start from a checkpoint: what is trained, what stays, what begins anew."""

from dataclasses import replace

import pytest
import torch
from tiny_models import randomize
from training_fixtures import TINY_SPEC, tiny_settings

from segue.models.sit import SiT
from segue.models.sizes import dit_spec
from segue.models.weights import load_network, save_model
from segue.training.data.herbarium import Herbarium
from segue.training.loop import Trainer
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.starting_weights import starting_weights
from segue.training.trained_parts import PARTS, freeze_all_but


@pytest.fixture
def checkpoint(tmp_path):
    """A file with a random network of the herbarium's classes."""
    path = tmp_path / "begun.safetensors"
    save_model(randomize(SiT(TINY_SPEC), 3), path)
    return path


class Roses(Herbarium):
    """The same leaves under two names: another source."""

    name, num_classes, parents, class_names = "roses", 2, (), ("dog", "tea")

    def batch(self, index, size, seed):
        samples, labels = super().batch(index, size, seed)
        return samples, labels % 2


def trained_names(trainer: Trainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}


def test_a_run_begins_with_the_weights_of_the_checkpoint(checkpoint, tmp_path):
    begun = starting_weights(checkpoint, Herbarium())
    assert begun.new == () and begun.spec == replace(TINY_SPEC, class_names=Herbarium.class_names)
    trainer = Trainer(begun.spec, tiny_settings(), tmp_path / "run", initial=begun.tensors)
    stored = load_network(checkpoint)[0].state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in trainer.model.state_dict().items())


def test_other_classes_begin_with_tables_of_their_own(checkpoint, tmp_path):
    begun = starting_weights(checkpoint, Roses(), exit_layer=2)
    assert (begun.spec.name, begun.spec.num_classes, begun.spec.class_names) == ("roses", 2, ("dog", "tea"))
    assert begun.spec.exits == (1, 2) and begun.new == ("the label tables", "exit_layers.2")
    settings = tiny_settings(dropout=LabelDropout(0.2))
    trainer = Trainer(begun.spec, settings, tmp_path / "run", source=Roses(), initial=begun.tensors)
    stored = load_network(checkpoint)[0].state_dict()
    names = trainer.model.state_dict()
    fresh = {name for name, value in names.items() if name not in stored or not torch.equal(value, stored[name])}
    assert fresh == {name for name in names if "y_embedder" in name or name.startswith("exit_layers.2")}


def test_samples_of_another_size_are_refused(checkpoint):
    with pytest.raises(ValueError, match="draws samples of 3 x 32 x 32, and those of herbarium are 3 x 16 x 16"):
        starting_weights(checkpoint, Herbarium(16))


@pytest.mark.parametrize("parts", ("labels", "biases", "labels,biases,norms", "attention, heads"))
def test_only_the_named_parts_are_trained(parts, checkpoint, tmp_path):
    begun = starting_weights(checkpoint, Herbarium())
    settings = tiny_settings(steps=3, trained=parts, batch_size=40)
    trainer = Trainer(begun.spec, settings, tmp_path / "run", initial=begun.tensors)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    wanted = {name for name in before if any(PARTS[part.strip()](name) for part in parts.split(","))}
    assert trained_names(trainer, before) == wanted and 0 < len(wanted) < len(before)
    written = load_network(tmp_path / "run")[0].state_dict()
    assert all(torch.equal(written[name], before[name]) for name in before.keys() - wanted)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["networks"]["main"]
    assert state["weights"].keys() == state["average"].keys() == wanted, "what is not trained is not kept twice"


def test_a_part_that_is_none_and_a_network_of_which_nothing_is_trained_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown part 'weights' of a network to train; there are: all, labels, biases"):
        tiny_settings(trained="labels,weights")
    with pytest.raises(ValueError, match="no parameter of SiT is trained"):  # its queries and keys are not normalised
        Trainer(TINY_SPEC, tiny_settings(trained="norms"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_partial_run_resumes_from_its_checkpoint(checkpoint, tmp_path):
    begun = starting_weights(checkpoint, Herbarium())
    settings = tiny_settings(steps=6, trained="labels,biases", batch_size=8)

    def trainer(folder, start="new"):
        return Trainer(begun.spec, settings, tmp_path / folder, start, initial=begun.tensors, facts={"from": begun.facts})

    whole = trainer("whole")
    whole.run()
    trainer("parts").run(lambda trainer, losses: trainer.step < 4)
    resumed = trainer("parts", "resume")
    resumed.run()
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="holds a run with another from"):
        Trainer(begun.spec, settings, tmp_path / "parts", "resume", facts={"from": begun.facts | {"digest": "0" * 16}})


def test_the_count_of_fine_grained_fine_tuning():
    """DiT-XL/2 with 10,000 species in 11 groups (after FineDiffusion, arXiv 2402.18331): 1.755 % are trained."""
    parents = tuple(index % 11 for index in range(10_000))
    spec = replace(dit_spec("XL/2"), num_classes=10_000, parents=parents)
    with torch.device("meta"):
        network = SiT(spec)
    freeze_all_but(network, "labels,biases,norms")
    count = {kind: sum(p.numel() for p in network.parameters() if kind or p.requires_grad) for kind in (False, True)}
    assert count == {False: 12_024_608, True: 685_216_544}


def test_the_count_with_affine_norms():
    """Norms of the blocks with weights, as the ancestor of EFDiT has them: 1.773 %, which is what was published."""
    parents = tuple(index % 11 for index in range(10_000))
    spec = replace(dit_spec("XL/2"), num_classes=10_000, parents=parents, affine_norms=True)
    with torch.device("meta"):
        network = SiT(spec)
    freeze_all_but(network, "labels,biases,norms")
    count = {kind: sum(p.numel() for p in network.parameters() if kind or p.requires_grad) for kind in (False, True)}
    assert count == {False: 12_153_632, True: 685_345_568} and round(100 * count[False] / count[True], 3) == 1.773


def test_a_run_gives_a_checkpoint_affine_norms(checkpoint, tmp_path):
    """They begin as the identity, are trained as norms, and the run draws with them."""
    begun = starting_weights(checkpoint, Herbarium(), affine_norms=True)
    settings = tiny_settings(steps=2, trained="norms", batch_size=8)
    trainer = Trainer(begun.spec, settings, tmp_path / "run", initial=begun.tensors)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert before.keys() - begun.tensors.keys() == {name for name in before if ".norm1." in name or ".norm2." in name}
    trainer.run()
    assert trained_names(trainer, before) == before.keys() - begun.tensors.keys()
    assert load_network(tmp_path / "run")[0].spec.affine_norms
