"""Where weak-to-strong training comes to rest: ``v_weak + (E[u*] - v_weak) / (1 - W)``, on tables that can be solved."""

import pytest
import torch
from tiny_models import tiny_sit
from torch import nn

from segue.models.sit import Pass
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.objectives.objective import Objective
from segue.training.objectives.velocity_task import VelocityTask

SPEC = tiny_sit(0, channels=1, height=1, width=3, patch=1, dim=16, exits=(1,), num_classes=3, parents=(0, 0, 1)).spec
TAU = 0.5
# gradient descent shrinks an error by the same factor each time; these many bring it below fp64's rounding
STEPS, RATE, REST = 160, 0.45, 1e-9


class Table(nn.Module):
    """A network of free numbers: an output for every label on each side of TAU; its head knows superclasses alone."""

    def __init__(self, coarse: bool = False):
        super().__init__()
        self.spec, self.coarse = SPEC, coarse
        shape = (2, SPEC.null_label + 1, SPEC.channels, SPEC.height, SPEC.width)
        self.outputs, self.head = (nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for _ in range(2))
        self.parent_of = torch.tensor([SPEC.parent_label(c) for c in range(3)] + list(range(3, SPEC.null_label + 1)))

    def forward(self, x, time, labels, exits=False, states=None):
        side, parents = (time >= TAU).long(), self.parent_of[labels]
        output = self.outputs[side, parents if self.coarse else labels]
        if states is None:
            return output
        return Pass(output, {1: self.head[side, parents]} if exits and not self.coarse else {}, {}, time)


def population(seed: int):
    """Samples of classes and of the null label at two times: each (label, side) many times, with targets of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, SPEC.null_label]).repeat_interleave(10)
    time = torch.tensor([0.3, 0.8], dtype=torch.float64).repeat(20)
    shape = (40, SPEC.channels, SPEC.height, SPEC.width)
    x0, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, labels, time, eps + labels[:, None, None, None]


def means(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """For every sample the mean over those of its group."""
    return torch.stack([values[groups == group].mean(0) for group in groups])


RULES = {
    "none": Objective(),
    "uncond": Objective("uncond", 0.6),
    "branch": Objective("branch", 0.6),
    "separate": Objective("separate", 0.6),
    "segmented": Objective("segmented", 0.6, tau=TAU),
    "inverse": Objective("segmented", 0.6, tau=TAU, target="inverse"),
}


@pytest.mark.parametrize("rule", RULES)
def test_training_comes_to_rest_at_the_fixed_point(rule, seed):
    task = VelocityTask(SPEC, LabelDropout(0.25), 0.2, RULES[rule])
    model, companion = Table(), Table(coarse=True)
    x0, labels, time, eps = population(seed)
    drawn = task.draw_at(x0, labels, task.noising.at_times(time), eps, 1.0)
    for _ in range(STEPS):
        losses = [task.losses(model, drawn, companion)["loss"], VelocityTask.companion_losses(task, companion, drawn)["loss"]]
        for network, loss in zip((model, companion), losses, strict=True):
            network.zero_grad()
            loss.backward()
            with torch.no_grad():  # a mean over 40 samples x 3 elements, of which 5 move one entry of a table
                for parameter in network.parameters():
                    if parameter.grad is not None:
                        parameter -= RATE * 120 / 5 * parameter.grad
    side = (time >= TAU).long()
    own, coarse = (means(eps - x0, 100 * side + group) for group in (labels, model.parent_of[labels]))
    unlabelled = labels == SPEC.null_label
    null = torch.stack([(eps - x0)[unlabelled & (side == own_side)].mean(0) for own_side in side])
    below = (time < TAU)[:, None, None, None]
    signal = {"uncond": null, "branch": coarse, "separate": coarse, "segmented": torch.where(below, coarse, null)}.get(
        task.objective.weak, own
    )
    expected = signal + (own - signal) * task.objective.effective_scale
    found = model(x0, time, labels).detach()
    assert float((found - expected).abs().max()) < REST * float(expected.abs().max())
