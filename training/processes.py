"""The processes of one training run: this one alone, or those that ``accelerate launch`` or ``torchrun`` started."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Processes:
    """One process: every method does what it says for the only one there is."""

    rank, count = 0, 1

    def __init__(self, device: str):
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The module to call for gradients that are means over all processes."""
        return network

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager:
        """While entered, gradients stay in their process: there are more to be added."""
        return nullcontext()

    def means(self, values: Tensor) -> Tensor:
        """The mean over the processes of ``values``, which all give."""
        return values

    def of_the_first(self, values: Sequence[float]) -> list[float]:
        """The numbers of the first process, for all."""
        return list(values)

    def wait(self) -> None:
        """Until all have come here."""


class LaunchedProcesses(Processes):
    """Several processes, connected by accelerate; a process uses the device of its number."""

    def __init__(self, device: str):
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # a part of a batch may leave a head without a gradient: those of other processes still count
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator: Any = Accelerator(cpu=device == "cpu", kwargs_handlers=[unused])
        super().__init__(str(self._accelerator.device))
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def wrap(self, network: nn.Module) -> nn.Module:
        return self._accelerator.prepare_model(network)

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager:
        return self._accelerator.no_sync(module)

    def means(self, values: Tensor) -> Tensor:
        return self._accelerator.reduce(values, "mean")

    def of_the_first(self, values: Sequence[float]) -> list[float]:
        from accelerate.utils import broadcast

        return broadcast(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def launched() -> int:
    """How many processes a launcher started for this run, by the variable that it sets."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process is the first of them, before they are connected."""
    return os.environ.get("RANK", "0") == "0"


def training_processes(device: str) -> Processes:
    """The processes that were launched for this run, by the variables that launchers set.

    Raises ``ValueError`` where several were launched and accelerate is not installed.
    """
    if launched() == 1:
        return Processes(device)
    try:
        import accelerate  # noqa: F401
    except ImportError:
        raise ValueError("training in several processes needs accelerate; install segue[train]") from None
    return LaunchedProcesses(device)
