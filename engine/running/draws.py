"""Labels that are drawn per sample and call: where they live on the device, who chooses them, and what their terms weigh."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.kernels.philox import random_words
from segue.kernels.record import Kernels
from segue.models.drawn_rows import PromptPool

from ..planning.choices import choices_of
from ..planning.plan import Plan
from ..rules.drawn import ClassifierReference, RandomCondition
from .call_table import CallTable

OTHER_COUNTER = 1 << 30  # of random labels: apart from the calls that count the solver's noise


def chosen_reference(
    logits: Tensor, own: Tensor, plain: Tensor, swaps: bool, gain: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """The reference [B] int64 of each sample and the factor [B] fp32 of its weight; a reconstruction after GFCG.

    logits [B, K] of the clean estimates, own [B] int64 their classes, plain [B] int64 what stands in where no rival is
    likelier; gain, temperature: numbers [].  With ``p`` the softmax of ``logits / temperature`` and ``r`` the likeliest class
    but the own one: ``r`` and ``1 - p_c``; or where it ``swaps``, ``r`` and ``1 + gain (1 - p_c)`` if ``p_r > p_c``, else
    ``plain`` and 1.
    """
    shares = torch.softmax(logits.float() / temperature, dim=1)
    others = shares.scatter(1, own[:, None], -1.0)
    likeliest, rival = others.max(dim=1)
    doubt = others.clamp_min(0.0).sum(dim=1)  # 1 - p_c without its rounding
    if not swaps:
        return rival, doubt
    swapped = likeliest > shares.gather(1, own[:, None])[:, 0]
    return torch.where(swapped, rival, plain), torch.where(swapped, 1 + gain * doubt, torch.ones_like(doubt))


def other_classes(seed: int, steps: int, own: int, classes: int) -> np.ndarray:
    """One of the ``classes`` but ``own`` for each of the steps, [steps], each as likely."""
    key = torch.tensor([seed], dtype=torch.uint64, device="cpu").view(torch.int64).expand(steps)
    words = random_words(key, torch.arange(steps, device="cpu") + OTHER_COUNTER, 1)[:, 0].numpy()
    return (own + 1 + words % (classes - 1)) % classes


def _own(condition: Any, cond: Any) -> Tensor:
    """The samples' own classes [B]: of prompts what their pool says, else the labels themselves."""
    return condition.own if isinstance(condition, PromptPool) else cond


class Draws:
    """The drawn labels of one program, by the order of :attr:`.Plan.draws`; what a step reads of them never leaves the device.

    ``labels`` [D, B] int64 are those of the current call, which rows read; ``chosen`` and ``factors`` [D, B] what classifiers
    chose last; ``plain`` and ``own`` [D, B] the labels without a choice, and the samples' own.
    """

    def __init__(
        self,
        plan: Plan,
        batch: int,
        table: Callable[..., CallTable],
        own_table: Callable[..., CallTable],
        classifiers: Mapping[ClassifierReference, Callable[[Tensor], Tensor]],
        device: torch.device,
        kernels: Kernels,
    ):
        """``table`` makes one of a width, ``own_table`` one with rows for each sample."""
        self.kernels, count = kernels, len(plan.draws)
        self.order = plan.draws  # a later plan has other numbers in them, and the same classifiers
        self.classifiers = [classifiers.get(draw) for draw in plan.draws]  # type: ignore[call-overload]
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        self.labels, self.chosen = torch.zeros(count, batch, **whole), torch.zeros(count, batch, **whole)
        self.plain, self.own = torch.zeros(count, batch, **whole), torch.zeros(count, batch, **whole)
        self.factors = torch.ones(count, batch, dtype=torch.float32, device=device)
        self.used = torch.ones(count, batch, dtype=torch.float32, device=device)  # the factors of the current call
        self.unchosen = torch.ones(count, dtype=torch.float32, device=device)  # the factor where nothing was chosen
        self.numbers = torch.ones(2, count, dtype=torch.float32, device=device)  # gain, temperature
        self.asked_table, self.follows_table = table(count), table(count)
        self.estimate_table = table(2 if count else 0)  # x0 = state y + output o
        self.random_table = own_table(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.order)

    def load(self, samples: Sequence[Plan], conditions: Mapping[Any, Any], seeds: Sequence[int]) -> None:
        """Put a run into the tables and forget the one before; one plan for all samples, or one for each."""
        plan = samples[0]
        self.order = plan.draws
        if not self.order:
            return
        asked, follows, estimates = [], [], []
        for own in samples:
            made = [choices_of(own, draw) for draw in self.order]
            asked.append(np.stack([choice.asked for choice in made], axis=1))
            follows.append(np.stack([choice.follows for choice in made], axis=1))
            m, n = own.parameterization.velocity(own.sigmas)
            estimates.append(np.stack([1 - own.sigmas * m, -own.sigmas * n], axis=1))
        self.asked_table.fill(asked)
        self.follows_table.fill(follows)
        self.estimate_table.fill(estimates)
        for d, draw in enumerate(self.order):
            self._start(d, conditions[draw], conditions["cond"])
            if isinstance(draw, ClassifierReference):
                self.unchosen[d] = float(draw.swaps)
                self.numbers[0, d], self.numbers[1, d] = draw.gain, draw.temperature
        self.random_table.fill(self._random(seeds, samples, conditions))
        self.forget(torch.ones_like(self.own[0], dtype=torch.bool))

    def _start(self, d: int, condition: Any, cond: Any) -> None:
        """Own and plain labels of a draw; of prompts the plain one is numbered after the classes."""
        self.own[d].copy_(_own(condition, cond))
        if isinstance(condition, PromptPool):
            self.plain[d].fill_(len(condition.pool))
        else:
            self.plain[d].copy_(condition)

    def _random(self, seeds: Sequence[int], samples: Sequence[Plan], conditions: Mapping[Any, Any]) -> list[np.ndarray]:
        """A class other than the own one for each sample, [calls, D], by its seed and the number of the step."""
        plan, plans = samples[0], list(samples) * (len(seeds) // len(samples))
        tables = np.zeros((len(seeds), max(own.calls for own in samples), len(self.order)), dtype=np.int64)
        for d, draw in enumerate(self.order):
            if isinstance(draw, RandomCondition):
                classes = len(draw.classes.names) if draw.classes else getattr(plan.spec, "num_classes", 0)
                for sample, own in enumerate(_own(conditions[draw], conditions["cond"]).tolist()):
                    steps = plans[sample].steps
                    tables[sample, : len(steps), d] = other_classes(seeds[sample], int(steps[-1]) + 1, own, classes)[steps]
        return list(tables)

    def forget(self, fresh: Tensor) -> None:
        """Let the samples ``fresh`` [B] bool start anew: as where nothing was chosen yet."""
        if len(self):
            self.chosen.copy_(torch.where(fresh, self.plain, self.chosen))
            self.factors.copy_(torch.where(fresh, self.unchosen[:, None], self.factors))

    def memory(self) -> tuple[Tensor, ...]:
        """What a call leaves for those after it."""
        return self.chosen, self.factors

    def begin(self, call: Tensor) -> None:
        """The labels and factors of a call [B], as far as they were chosen before it."""
        follows = self.follows_table.at(self.kernels, call).T > 0  # [D, B]
        torch.where(follows, self.chosen, self.plain, out=self.labels)
        torch.where(follows, self.factors, self.unchosen[:, None], out=self.used)
        for d, draw in enumerate(self.order):
            if isinstance(draw, RandomCondition):
                self.labels[d].copy_(self.random_table.at(self.kernels, call)[:, d])
                self.used[d].fill_(1.0)

    def given(self, draw: Any, condition: Any) -> Any:
        """What rows that record take for a draw at the current call: labels [B], or prompts from the pool ``condition``."""
        labels = self.labels[self.order.index(draw)].clone()
        return condition.drawn(labels) if isinstance(condition, PromptPool) else labels

    def choose(self, draw: ClassifierReference, state: Tensor, output: Tensor, call: Tensor) -> None:
        """Ask the classifier of a draw about the clean estimates of one branch, for the samples whose own call asks.

        state, output [B, C, H, W] fp32, the latter the network's own.
        """
        d = self.order.index(draw)
        of_state, of_output = self.estimate_table.at(self.kernels, call)[:, :, None, None, None].unbind(1)
        logits = self.classifiers[d](torch.addcmul(of_state * state, of_output, output))
        gain, temperature = self.numbers[:, d].unbind()
        label, factor = chosen_reference(logits, self.own[d], self.plain[d], draw.swaps, gain, temperature)
        asked = self.asked_table.at(self.kernels, call)[:, d] > 0
        self.chosen[d].copy_(torch.where(asked, label, self.chosen[d]))
        self.factors[d].copy_(torch.where(asked, factor, self.factors[d]))

    def weighed(self, coefficients: Tensor, slots: Sequence[int | None]) -> Tensor:
        """``coefficients`` [B, branches, C'] with the factors of the current call.

        slots: for each branch which draw chooses its weight, None where none does.
        """
        if all(slot is None for slot in slots):
            return coefficients
        whole = coefficients.sum(dim=1).round()  # one, or zero at a silent call
        weighed = coefficients.clone()
        for branch, slot in enumerate(slots):
            if slot is not None:
                weighed[:, branch] *= self.used[slot][:, None]
        changed = whole - weighed[:, 1:].sum(dim=1)
        plain = (self.used == 1).all(dim=0)[:, None]  # then the table's own number, to the bit
        weighed[:, 0] = torch.where(plain, coefficients[:, 0], changed)
        return weighed
