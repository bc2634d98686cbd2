"""REPA's term: its value, what it trains, the names of its projectors, and files that sampling reads without them."""

import math

import pytest
import torch
from tiny_models import randomize, tiny_sit
from torch import Tensor

from segue.models.projectors import SiTWithProjectors
from segue.models.weights import load_network
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.objectives.objective import Objective
from segue.training.objectives.representation import Representation, representation_loss
from segue.training.objectives.velocity_task import VelocityTask

DIMS, LAYER = (5, 3), 2
SPEC = tiny_sit(0, channels=2, height=4, width=6, dim=16, depth=4, exits=()).spec


def features(x0: Tensor) -> Tensor:
    """Made up: [B, 6, 8] from the samples, different for every token."""
    tokens = x0.flatten(1)[:, :48].reshape(len(x0), 6, 8)
    return torch.sin(3 * tokens + torch.arange(8))


TERM = Representation(features, DIMS, layer=LAYER, width=11, weight=0.7)


def task_and_network(seed: int, objective: Objective | None = None):
    task = VelocityTask(SPEC, LabelDropout(0.2), 0.2, objective or Objective(), representation=TERM)
    return task, randomize(task.network().double(), seed).requires_grad_(True)


def drawn_by(task: VelocityTask, seed: int, count: int = 5):
    generator = torch.Generator().manual_seed(seed)
    x0, labels = torch.randn(count, 2, 4, 6, generator=generator).double(), torch.arange(count) % 6
    return task.draw(x0, labels, generator, 1.0)


@pytest.mark.parametrize("objective", (Objective(), Objective.published("uncond"), Objective.published("layer-skip")))
def test_the_term_is_minus_the_mean_cosine_of_every_token(objective, seed):
    task, network = task_and_network(seed, objective)
    drawn = drawn_by(task, seed)
    losses = task.losses(network, drawn)
    alpha, s = drawn.table[:, :2, None, None, None].unbind(1)
    states = []
    handle = network.blocks[LAYER].register_forward_pre_hook(lambda _, arguments: states.append(arguments[0]))
    network(alpha * drawn.x0 + s * drawn.eps, drawn.time, drawn.labels)
    handle.remove()
    cosines = []
    for number, (first, last) in enumerate(((0, 5), (5, 8))):
        for i in range(5):
            for token in range(6):
                ours, theirs = network.projectors[number](states[0][i, token]), features(drawn.x0)[i, token, first:last]
                cosines.append(((ours @ theirs) / ours.norm() / theirs.norm()).item())
    assert losses["representation"].item() == pytest.approx(-sum(cosines) / len(cosines), rel=1e-9)
    beside = losses["loss"] - 0.7 * losses["representation"]
    assert beside.item() == pytest.approx(losses["velocity"].item(), rel=1e-12)


def test_it_trains_the_projectors_and_the_blocks_before_them(seed):
    task, network = task_and_network(seed)
    task.losses(network, drawn_by(task, seed))["representation"].backward()
    learns = {name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert {f"projectors.{n}.{i}.weight" for n in (0, 1) for i in (0, 2, 4)} < learns
    assert any(name.startswith(f"blocks.{LAYER - 1}.") for name in learns)
    assert not any(name.startswith((f"blocks.{LAYER}.", "final_layer.")) for name in learns)


def test_equal_directions_have_the_loss_minus_one():
    ours = torch.rand(3, 4, 7) + 0.1
    assert representation_loss([ours, 5 * ours], torch.cat([2 * ours, ours], -1)).item() == pytest.approx(-1, abs=1e-6)


def test_projectors_do_not_run_in_sampling(seed):
    _, network = task_and_network(seed)
    network.projectors.register_forward_pre_hook(lambda *_: pytest.fail("a projector ran"))
    for projector in network.projectors:
        projector.register_forward_pre_hook(lambda *_: pytest.fail("a projector ran"))
    x = torch.zeros(2, 2, 4, 6, dtype=torch.float64)
    assert network(x, torch.rand(2), torch.tensor([0, 1])).shape == x.shape


def test_a_written_network_has_the_projectors_under_repas_names_and_loads_without_them(tmp_path, seed):
    task, network = task_and_network(seed)
    task.write(network, tmp_path / "a.safetensors", {"steps": "3"})
    loaded, report = load_network(tmp_path / "a.safetensors")
    written = {f"projectors.{n}.{i}.{part}" for n in (0, 1) for i in (0, 2, 4) for part in ("weight", "bias")}
    assert dict(report.ignored) == dict.fromkeys(written, "used in training only")
    ours = network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in loaded.state_dict().items())
    assert written | loaded.state_dict().keys() == ours.keys()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Representation(None, (3,)), TypeError, "features must be a function of samples, got None"),
        (lambda: Representation(features, ()), ValueError, "at least one encoder's features, got no dims"),
        (lambda: Representation(features, (0,)), ValueError, "dims of a representation must be at least 1, got 0"),
        (lambda: Representation(features, (3,), layer=0), ValueError, "layer of a representation must be at least 1, got 0"),
        (lambda: Representation(features, (3,), weight=math.nan), ValueError, "finite and at least 0, got nan"),
        (lambda: SiTWithProjectors(SPEC, 5, (3,), 4), ValueError, "after block 1 to 4, got 5"),
        (
            lambda: VelocityTask(SPEC, LabelDropout(), 0.2, representation=Representation(features, DIMS)),
            ValueError,
            "read after block 8, and tiny has 4 blocks",
        ),
    ],
)
def test_what_is_no_representation_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("returned", (torch.zeros(5, 6, 7), torch.zeros(5, 5, 8), [1.0]))
def test_features_of_another_shape_are_refused(returned):
    term = Representation(lambda x0: returned, DIMS, layer=LAYER)
    task = VelocityTask(SPEC, LabelDropout(0.2), 0.2, representation=term)
    with pytest.raises(ValueError, match=r"must be a tensor \[5, 6, 8\], got"):
        task.draw(torch.zeros(5, 2, 4, 6), torch.arange(5), torch.Generator(), 0.0)
