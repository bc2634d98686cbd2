"""The objective against the formulas, written out sample by sample."""

import copy

import pytest
import torch
from tiny_models import tiny_sit

from segue.training.objective import LabelDropout, logit_normal_time, plain_loss
from tests.tolerances import FP32_NETWORK_LOSS


@pytest.fixture(scope="module")
def model():
    return tiny_sit(3, exits=(1, 3)).requires_grad_(True)


def draws(spec, count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, spec.channels, spec.height, spec.width)
    labels = torch.randint(0, spec.null_label + 1, (count,), generator=generator)
    x0, eps = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return x0, labels, torch.rand(count, generator=generator), eps


@pytest.mark.parametrize("exit_weight", (0.0, 0.2, 1.5))
def test_plain_loss_is_the_mean_squared_velocity_error(model, exit_weight, seed):
    x0, labels, sigma, eps = draws(model.spec, 5, seed)
    losses = plain_loss(model, x0, labels, sigma, eps, exit_weight)
    double = copy.deepcopy(model).double().requires_grad_(False)
    sums = {"velocity": 0.0, "exit1": 0.0, "exit3": 0.0}
    for i in range(5):
        s = sigma[i].double()
        state = (1 - s) * x0[i].double() + s * eps[i].double()
        v, heads = double(state[None], s[None], labels[i : i + 1], exits=True)
        for name, output in {"velocity": v, "exit1": heads[1], "exit3": heads[3]}.items():
            sums[name] += float(((output[0] - (eps[i].double() - x0[i].double())) ** 2).sum())
    expected = {name: total / x0.numel() for name, total in sums.items()}
    expected["loss"] = expected["velocity"] + exit_weight * (expected["exit1"] + expected["exit3"])
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=FP32_NETWORK_LOSS), name


def test_the_perfect_velocity_has_no_loss():
    class Perfect(torch.nn.Module):
        def forward(self, x, sigma, labels, exits):
            return eps - x0, {2: eps - x0}

    x0, labels, sigma, eps = draws(tiny_sit(0).spec, 3, 0)
    assert plain_loss(Perfect(), x0, labels, sigma, eps)["loss"] == 0


def test_exit_heads_learn_only_where_they_are_weighed(model, seed):
    for weight, learns in ((0.0, False), (0.2, True)):
        model.zero_grad()
        plain_loss(model, *draws(model.spec, 3, seed), exit_weight=weight)["loss"].backward()
        gradient = model.exit_layers["1"].linear.weight.grad
        assert bool(gradient.abs().max() > 0) is learns


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


def test_noise_levels_are_logit_normal(seed):
    mean, std, count = -0.4, 1.3, 40_000
    sigma = logit_normal_time(count, torch.Generator().manual_seed(seed), mean, std)
    assert sigma.min() > 0 and sigma.max() < 1
    logits = torch.logit(sigma.double())
    assert abs(logits.mean() - mean) < 5 * std / count**0.5
    assert abs(logits.std() - std) < 5 * std / (2 * count) ** 0.5
