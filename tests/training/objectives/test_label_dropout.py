"""Label dropout: its rates, its two kinds, its refusals."""

import pytest
import torch
from tiny_models import tiny_sit

from segue.training.objectives.label_dropout import LabelDropout


def test_dropout_keeps_the_superclass_or_nothing_at_the_stated_rates(seed):
    spec, count = tiny_sit(0).spec, 60_000
    everything, species = 0.13, 0.21
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, spec.num_classes, (count,), generator=generator)
    dropped = LabelDropout(everything, species)(labels, spec, generator)
    parent = torch.tensor([spec.parent_label(c) for c in range(spec.num_classes)])[labels]
    kinds = torch.stack([dropped == labels, dropped == parent, dropped == spec.null_label])
    assert kinds.sum(0).eq(1).all(), "a label stays, or becomes its own superclass or the null label"
    rates = torch.tensor([(1 - everything) * (1 - species), (1 - everything) * species, everything])
    spread = (rates * (1 - rates) / count).sqrt()
    assert ((kinds.float().mean(1) - rates).abs() < 5 * spread).all()


def test_dropout_at_zero_and_one(seed):
    spec, generator = tiny_sit(0).spec, torch.Generator().manual_seed(seed)
    labels = torch.arange(spec.num_classes)
    assert torch.equal(LabelDropout(0.0, 0.0)(labels, spec, generator), labels)
    assert LabelDropout(1.0, 0.5)(labels, spec, generator).eq(spec.null_label).all()
    parents = torch.tensor([spec.parent_label(c) for c in range(spec.num_classes)])
    assert torch.equal(LabelDropout(0.0, 1.0)(labels, spec, generator), parents)


def test_untiered_models_have_no_superclass_to_keep():
    spec = tiny_sit(0, parents=()).spec
    with pytest.raises(ValueError, match="no superclasses"):
        LabelDropout(0.1, 0.1)(torch.tensor([0]), spec, torch.Generator())
    assert LabelDropout(1.0)(torch.tensor([0]), spec, torch.Generator()).item() == spec.num_classes


@pytest.mark.parametrize("value", (-0.1, 1.5, float("nan")))
@pytest.mark.parametrize("name", ("everything", "species"))
def test_dropout_refuses_what_is_no_probability(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        LabelDropout(**{name: value})
