"""Adaptive guidance: a flag for each sample, on the device, that a branch has stopped, and the host's look at these flags."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import Kernels

from ..planning.plan import Plan
from .call_table import CallTable

NEVER = 2.0  # no cosine is above it
POLL_EVERY = 2  # calls; each is a copy of a few bytes that nobody waits for


class StoppingBranches:
    """``stopped`` [adaptive, B] bool: which samples are guided no more by a branch whose output came close to the condition's.

    At the call where the cosine of the two passes the threshold the branch still guides, after it no more.  Source: adaptive
    guidance, arXiv 2312.12487, in the network's own output: noise for DiT, as published; for velocities a reconstruction.
    """

    def __init__(self, plan: Plan, batch: int, table: Callable[[int], CallTable], device: torch.device, kernels: Kernels):
        """``table`` makes one of a width."""
        self.kernels, self.branches = kernels, plan.adaptive
        self.stopped = torch.zeros(len(self.branches), batch, dtype=torch.bool, device=device)
        self.unneeded = torch.zeros_like(self.stopped)  # where a sample's rule never weighs the branch
        self.threshold_table = table(len(self.branches))  # where a call weighs it, else NEVER

    def load(self, samples: Sequence[Plan]) -> None:
        """Put the thresholds of a run into the table; one plan for all samples, or one for each."""
        own = [branch - 1 for branch in self.branches]
        limits = [np.array([NEVER if stop is None else stop for stop in plan.stops])[own] for plan in samples]
        weighs = [plan.weights[:, own] != 0 for plan in samples]
        rows = [np.where(live, limit, NEVER) for live, limit in zip(weighs, limits, strict=True)]
        self.threshold_table.fill(rows, beyond=NEVER)
        unneeded = np.stack([~live.any(axis=0) for live in weighs], axis=1)  # [adaptive, samples or 1]
        self.unneeded.copy_(torch.from_numpy(unneeded).expand_as(self.unneeded))
        self.stopped.copy_(self.unneeded)

    def start_anew(self, samples: Tensor) -> None:
        """Samples [B] bool have stopped nothing."""
        self.stopped.copy_(torch.where(samples, self.unneeded, self.stopped))

    def factor(self, branch: int) -> Tensor | None:
        """1 for the samples that ``branch`` guides still, else 0, [B, 1] fp32; None where it never stops."""
        if branch not in self.branches:
            return None
        return (~self.stopped[self.branches.index(branch)]).float()[:, None]

    def look(self, conditional: Tensor, outputs: Mapping[int, Tensor], call: Tensor) -> None:
        """Stop the branches that came close enough at this call, for the calls after it."""
        if not any(branch in outputs for branch in self.branches):
            return
        thresholds = self.threshold_table.at(self.kernels, call)  # [B, adaptive]
        c = conditional.detach().flatten(1)
        for k, branch in enumerate(self.branches):
            if branch in outputs:
                close = torch.cosine_similarity(c, outputs[branch].detach().flatten(1), dim=1) > thresholds[:, k]
                self.stopped[k].logical_or_(close)

    def without_stopped(self, live: tuple[int, ...], ended: Sequence[bool]) -> tuple[int, ...]:
        """``live`` less the branches that have ``ended`` for all samples."""
        gone = {branch for branch, over in zip(self.branches, ended, strict=True) if over}
        return tuple(branch for branch in live if branch not in gone)

    def ended(self) -> Tensor:
        """Whether each adaptive branch has stopped for all samples, [adaptive] bool on the device."""
        return self.stopped.all(dim=1)


class StopPoll:
    """Which branches have stopped for all samples, as the host knows it between the calls of a run.

    On a CPU it knows at once.  On CUDA the flags are copied every :data:`POLL_EVERY` calls and read once they have arrived: the
    host never waits, and a branch runs a few calls longer than it must, with weight zero.
    """

    def __init__(self, branches: StoppingBranches):
        self.branches = branches
        self.known = [False] * len(branches.branches)
        self.calls = 0
        self.arriving: tuple[Tensor, torch.cuda.Event] | None = None
        self.waits = branches.stopped.device.type != "cuda"

    def live(self, planned: tuple[int, ...]) -> tuple[int, ...]:
        """The branches of a call that are still needed."""
        if self.arriving is not None and self.arriving[1].query():
            self.known, self.arriving = self.arriving[0].tolist(), None
        return self.branches.without_stopped(planned, self.known)

    def after_call(self) -> None:
        """Look at the flags, or let a copy of them begin."""
        self.calls += 1
        if self.waits:
            self.known = self.branches.ended().tolist()
        elif self.arriving is None and self.calls % POLL_EVERY == 0:
            copy = torch.empty(len(self.known), dtype=torch.bool, device="cpu", pin_memory=True)
            copy.copy_(self.branches.ended(), non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.branches.stopped.device))
            self.arriving = copy, event
