"""One optimiser step; on a CUDA device captured graphs, since small networks are trained as fast as the host launches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .average import WeightAverage
from .captured import Captured
from .processes import Processes
from .settings import TrainSettings
from .task import Drawn, Task

COMPANION_EVERY = 4  # steps, as the released code of arXiv 2603.20584 trains the weak network beside the strong one


@dataclass(frozen=True, eq=False)
class Trained:
    """A network, the module that is called for its gradients, and what follows its weights."""

    network: nn.Module
    called: nn.Module
    average: WeightAverage
    optimizer: torch.optim.AdamW

    @classmethod
    def of(cls, network: nn.Module, settings: TrainSettings, processes: Processes) -> "Trained":
        """Raises ``ValueError`` for a network of which nothing is trained."""
        trained = [value for value in network.parameters() if value.requires_grad]
        if not trained:
            raise ValueError(f"no parameter of {type(network).__name__} is trained")
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)  # they stay: graphs add to them
        average = WeightAverage(network, settings.ema)
        return cls(network, processes.wrap(network), average, _make_optimizer(trained, settings))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.optimizer.param_groups[0]["params"]

    def state(self) -> dict[str, Any]:
        """What a run goes on from: of the weights, those that are trained."""
        return {
            "weights": {name: value.detach() for name, value in self.average.parameters.items()},
            "average": self.average.values,
            "updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any], settings: TrainSettings) -> None:
        """Take over a state, which may come from another machine.  Raises ``KeyError`` for one of other parameters."""
        with torch.no_grad():
            for name, value in self.average.parameters.items():
                value.copy_(state["weights"][name])
        self.average.load(state["average"], state["updates"])
        saved = state["optimizer"]
        groups = [group | _machine_options(settings) for group in saved["param_groups"]]
        self.optimizer.load_state_dict(saved | {"param_groups": groups})
        _place_rate(self.optimizer, settings)


def _make_optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; on a CUDA device with its learning rate and its counters there, so that a graph can hold it."""
    options: dict[str, Any] = {"weight_decay": settings.weight_decay, "betas": (0.9, settings.beta2)}
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, **options, **_machine_options(settings))
    _place_rate(optimizer, settings)
    return optimizer


def _machine_options(settings: TrainSettings) -> dict[str, Any]:
    return {"fused": settings.captured or None, "capturable": settings.captured}


def _place_rate(optimizer: torch.optim.AdamW, settings: TrainSettings) -> None:
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["lr"] = torch.tensor(rate, device=settings.device) if settings.captured else rate


def _set_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class TrainingStep:
    """Losses and gradients of the parts of a batch, clipping, optimiser and average, on tensors that stay where they are.

    A call that is no graph raises ``FloatingPointError`` before it changes a weight if the gradient is not finite.  A captured
    one does not wait for the device: who reads the losses must look.
    """

    def __init__(self, main: Trained, companion: Trained | None, task: Task, settings: TrainSettings, processes: Processes):
        self.main, self.companion, self.task, self.settings, self.processes = main, companion, task, settings, processes
        self._functions: dict[str, Callable[[Drawn], dict[str, Tensor]]] = {}
        self._stream = torch.cuda.Stream(settings.device) if settings.captured else None

    @property
    def graphs(self) -> int:
        """How many graphs were captured."""
        return sum(each.graphs for each in self._functions.values() if isinstance(each, Captured))

    def __call__(self, step: int, parts: Sequence[Drawn], learning_rate: float) -> dict[str, Tensor]:
        """Step number ``step`` on what was drawn for each part of this process's share of the batch, on the CPU.

        Returns the losses, means over the parts, and the gradient's norm: scalars on the device.
        """
        losses = self._train("main", self.main, parts, learning_rate)
        if self.companion is not None and step % COMPANION_EVERY == 0:
            self._train("companion", self.companion, parts, learning_rate)
        return losses

    def _train(self, name: str, trained: Trained, parts: Sequence[Drawn], learning_rate: float) -> dict[str, Tensor]:
        _set_rate(trained.optimizer, learning_rate)
        gradients = self._function(f"gradients of {name}", lambda drawn: self._gradients(trained, drawn, len(parts)))
        rows = []
        for index, drawn in enumerate(parts):
            if index + 1 < len(parts):
                with self.processes.unsynchronised(trained.called):
                    rows.append(gradients(drawn))
            else:
                rows.append(gradients(drawn))
        # the first update begins the average: no graph may hold it, and none does, as it is the first call of all
        norm = self._function(f"update of {name}", lambda _: self._update(trained))(())
        trained.average.updates += 1
        return {key: torch.stack([row[key] for row in rows]).mean() for key in rows[0]} | norm

    def _function(self, name: str, function: Callable[[Drawn], dict[str, Tensor]]) -> Callable[[Drawn], dict[str, Tensor]]:
        """``function`` under ``name``, on the device's own copies of what was drawn, as graphs where that is asked for."""
        if name not in self._functions:
            self._functions[name] = Captured(function, self._stream) if self._stream else self._eager(function)
        return self._functions[name]

    def _eager(self, function: Callable[[Drawn], dict[str, Tensor]]) -> Callable[[Drawn], dict[str, Tensor]]:
        return lambda drawn: function(tuple(tensor.to(self.settings.device) for tensor in drawn))

    def _gradients(self, trained: Trained, drawn: Drawn, parts: int) -> dict[str, Tensor]:
        """Add the gradients of one part."""
        s = self.settings
        kind = torch.device(s.device).type
        # the casts of weights are part of a graph: none may be kept from outside
        with torch.autocast(kind, torch.bfloat16, enabled=s.dtype == "bfloat16", cache_enabled=not s.captured):
            if trained is self.main:
                companion = None if self.companion is None else self.companion.network
                losses = self.task.losses(trained.called, drawn, companion)
            else:
                losses = self.task.companion_losses(trained.called, drawn)
        (losses["loss"] / parts).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _update(self, trained: Trained) -> dict[str, Tensor]:
        """Clip the gradients, apply and clear them; the norm that they had."""
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters, self.settings.clip)
        if not self.settings.captured and not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm.item()}")
        trained.optimizer.step()
        trained.optimizer.zero_grad(set_to_none=False)
        trained.average.update()
        return {"gradient": norm.detach()}
