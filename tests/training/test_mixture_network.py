"""Guided samplers on exact networks: the engine against the naive sampler in fp64, and both against closed forms."""

import pytest
import torch
from naive_sampler import NaiveSampler

from segue import APG, CFG, SGG, AutoGuidance, CFGZeroStar, EarlyExit, Engine, Rescale, SkipLayer, Window
from segue.engine.rules.branch import Exit
from segue.training.leaf_trees import leaf_mixture
from segue.training.mixture_network import MixtureNetwork, leaf_network

# fp32 state against fp64: 18 calls that round twice each, and guided trajectories that part by a factor of 10 near a boundary
# between branches of a tree; relative to the largest value
STATE = 18 * 2 * 6e-8 * 10
STEPS, LABELS = 18, [0, 1, 2, 3, 2]
RULES = {
    "none": None,
    "cfg": CFG(2.5),
    "cfg in an interval": CFG(3.0, window=Window.sigma(0.3, 0.8)),
    "cfg by sigma": CFG(lambda sigma: 1 + 2 * sigma * (1 - sigma)),
    "superclass": CFG(2.0, condition="parent"),
    "another class": CFG(1.5, condition=3),
    "broader": AutoGuidance(1.0),
    "shallower": EarlyExit(0.8, 1),
    "segmented, broader": SGG(CFG(2.0), AutoGuidance(1.0), 0.6),
    "segmented, shallower": SGG(CFG(2.0), EarlyExit(1.0, 2), 0.5),
    "sum": CFG(1.7, window=Window.fraction(0.0, 0.6)) + AutoGuidance(0.5, delta=0.2),
    "reused": CFG(2.0).reused(3),
    "projection": CFG(2.0) + APG(-0.3, 2.0, 0.2),
    "zero star": CFG(2.0) + CFGZeroStar(1),
    "rescaled": CFG(2.0) + Rescale(0.5),
}


class ExactSampler(NaiveSampler):
    """The naive sampler on networks whose output is known: no rows, no plan, fp64 throughout."""

    def output(self, branch, y, sigma):
        network, spec = self.models[branch.model], self.models["main"].spec
        depth = branch.network.layer if isinstance(branch.network, Exit) else spec.depth
        labels = {
            "cond": self.labels,
            "uncond": torch.full_like(self.labels, spec.null_label),
            "parent": torch.tensor([spec.parent_label(int(label)) for label in self.labels]),
        }.get(branch.condition, torch.full_like(self.labels, branch.condition if isinstance(branch.condition, int) else 0))
        return network.levels[depth - 1].velocity(y[:, :, 0, 0], sigma, labels)[:, :, None, None]


@pytest.fixture(scope="module")
def networks():
    """A slightly blurred network of trees of three levels in two superclasses, and a weak one."""
    main, weak = leaf_network(4, 3, 2, blur=0.05), leaf_network(4, 3, 2, blur=0.3, confusion=0.2, name="weak")
    return {"main": main, "weak": weak}


@pytest.fixture(scope="module")
def engine(networks):
    return Engine(networks["main"], {"weak": networks["weak"]}, device="cpu")


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_guided_runs_equal_the_naive_sampler(engine, networks, rule, solver):
    run = engine.sample(LABELS, rule, steps=STEPS, seeds=3, solver=solver, schedule="shift")
    naive = ExactSampler(networks, run.plan.guidance, torch.tensor(LABELS), list(run.plan.schedule.sigmas))
    expected = naive.run(solver, engine.draw_noise(run.plan, run.seeds))
    assert (run.latents - expected).abs().max() <= STATE * expected.abs().max()


def test_every_rule_but_none_changes_the_sample(engine):
    """Else the test above compares nothing."""
    plain = engine.sample(LABELS, None, steps=STEPS, seeds=3, schedule="shift").latents
    for name, rule in RULES.items():
        changed = engine.sample(LABELS, rule, steps=STEPS, seeds=3, schedule="shift").latents
        assert ((changed - plain).abs().max() > 1e-2) == (rule is not None), name


def transported(mixture, label: int, noise: torch.Tensor, weak=None, weight: float = 0.0, window=(0.0, 1.0)) -> torch.Tensor:
    """Where the flow of a single Gaussian takes ``noise`` [B, 2], in closed form.

    Along an axis of variance l the velocity is ``-m + C' / (2 C) (x - (1 - s) m)`` with ``C = (1 - s)^2 l + s^2``, so that
    ``x - (1 - s) m`` grows like ``sqrt(C)``; a weak Gaussian of the same mean adds a power of the quotient of both roots.
    """
    (index,) = torch.nonzero(mixture.weights[label]).flatten().tolist()
    frame = torch.stack([mixture.axes[index], torch.tensor([-mixture.axes[index][1], mixture.axes[index][0]])])
    factor = mixture.variances[index].sqrt()
    if weak is not None:

        def quotient(s):
            own, other = (((1 - s) ** 2 * of.variances[index] + s**2).sqrt() for of in (mixture, weak))
            return own / other

        low, high = window
        factor = factor * (quotient(low) / quotient(high)) ** weight
    return mixture.means[index] + (noise.double() @ frame.T * factor) @ frame


def run_points(network, rule, labels, noise, steps, models=None):
    """Clean points [B, 2] by the engine, with Heun's method at even steps."""
    engine = Engine(network, models, device="cpu")
    run = engine.sample(labels, rule, steps=steps, seeds=0, noise=noise[:, :, None, None], solver="heun", schedule="linear")
    return run.latents[:, :, 0, 0]


def assert_converges(draw, expected):
    """``draw(steps)`` comes to ``expected`` as a second-order method does: a quarter of the error at half the step."""
    coarse, fine = (float((draw(steps) - expected).abs().max()) for steps in (64, 128))
    assert coarse <= 0.02 and fine <= 0.3 * coarse + 1e-6


@pytest.fixture
def noise(seed):
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))


def test_a_single_gaussian_is_scaled_and_moved(noise):
    network = leaf_network(3, 1)
    assert_converges(lambda steps: run_points(network, None, [1] * 6, noise, steps), transported(network.levels[0], 1, noise))


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)])
def test_a_broader_gaussian_as_weak_network_sharpens_by_a_power(noise, window):
    """``w`` of autoguidance scales by ``(l / l_weak)^(w / 2)``, in a window by the quotient of its ends."""
    strong, weak, weight = leaf_network(3, 1), leaf_network(3, 1, blur=1.5, name="weak"), 0.75
    rule = AutoGuidance(weight, window=Window.sigma(*window))
    expected = transported(strong.levels[0], 2, noise, weak.levels[0], weight, window)
    assert (expected - transported(strong.levels[0], 2, noise)).abs().max() > 0.02
    assert_converges(lambda steps: run_points(strong, rule, [2] * 6, noise, steps, {"weak": weak}), expected)


def test_guidance_away_from_a_class_of_equal_shape_moves_the_mean(noise):
    """Two opposite leaves have one covariance: ``c + w (c - k)`` is the velocity of a Gaussian at ``m + w (m - m_k)``."""
    network, weight = leaf_network(2, 1), 0.8
    mixture = network.levels[0]
    assert torch.allclose(*mixture.covariances(), atol=1e-12)
    moved = transported(mixture, 0, noise) + weight * (mixture.means[0] - mixture.means[1])
    assert_converges(lambda steps: run_points(network, CFG(1 + weight, condition=1), [0] * 6, noise, steps), moved)


@pytest.mark.parametrize("rule", [CFG(2.5), SGG(CFG(2.0), EarlyExit(1.0, 2), 0.6), AutoGuidance(0.7)], ids=str)
def test_gradients_of_a_guided_velocity_are_those_of_the_exact_one(engine, networks, rule, seed):
    """By the engine's own recording of a call, and by autograd through the fp64 sum of the naive sampler."""
    x = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(seed))
    towards = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(seed + 1))
    for sigma in (0.25, 0.75):
        given, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        denoised = engine.denoiser(rule, LABELS)(given, torch.full((5,), sigma, dtype=torch.float64))
        (denoised * towards).sum().backward()
        naive = ExactSampler(networks, rule, torch.tensor(LABELS), [sigma, 0.0])
        naive.kept, naive.ages, naive.memories, naive.calls = {}, {}, {}, 0
        expected = exact - sigma * naive.velocity(exact, sigma, 0)
        (expected * towards).sum().backward()
        assert (given.grad - exact.grad).abs().max() <= STATE * exact.grad.abs().max()


def test_levels_of_a_network_are_its_early_exits(networks):
    network = networks["main"]
    assert network.spec.exits == (1, 2)
    for resolved, level in enumerate(network.levels, start=1):
        expected = leaf_mixture(4, 3, 2, resolved).underfitted(blur=0.05)
        assert torch.equal(level.means, expected.means) and torch.equal(level.variances, expected.variances)


def test_a_mixture_of_its_own_classes_needs_no_guidance(noise):
    """One class: with and without the condition are the same, and so is every scale."""
    network = leaf_network(1, 2)
    plain, guided = (run_points(network, rule, [0] * 6, noise, 20) for rule in (None, CFG(7.0)))
    assert (plain - guided).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: MixtureNetwork(()), "at least one, got none"),
        (
            lambda: MixtureNetwork((leaf_mixture(2, 1), leaf_mixture(3, 1))),
            r"the same classes, got \[\(2, \(\)\), \(3, \(\)\)\]",
        ),
        (lambda: leaf_network().rows(1, 2, 2), "a latent of 1 x 1, got 2 x 2"),
        (
            lambda: Engine(leaf_network(), device="cpu").sample([0], SkipLayer(1.0, (1,)), steps=2),
            "a mixture has no layers to perturb",
        ),
    ],
)
def test_bad_input_is_one_sentence_with_the_value(call, said):
    with pytest.raises(ValueError, match=said):
        call()
