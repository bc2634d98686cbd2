"""One optimiser step; on a CUDA device a captured graph, since small networks are trained as fast as the host launches."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .settings import TrainSettings
from .task import Drawn, Task

WARM_UP = 3  # steps before the capture: they allocate the gradients and the optimiser's state, and compile what compiles


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; on a CUDA device with its learning rate and its counters there, so that a graph can hold it."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.99),
        **_machine_options(settings),
    )
    _place_rate(optimizer, settings)
    return optimizer


def load_optimizer(optimizer: torch.optim.AdamW, state: dict[str, Any], settings: TrainSettings) -> None:
    """Take over the averages and counters of a run, on this run's machine: a state may come from another."""
    groups = [group | _machine_options(settings) for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})
    _place_rate(optimizer, settings)


def _machine_options(settings: TrainSettings) -> dict[str, Any]:
    return {"fused": settings.captured or None, "capturable": settings.captured}


def _place_rate(optimizer: torch.optim.AdamW, settings: TrainSettings) -> None:
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["lr"] = torch.tensor(rate, device=settings.device) if settings.captured else rate


class TrainingStep:
    """Losses, gradient, clipping, optimiser and average, on tensors that stay where they are.

    A call that is no graph raises ``FloatingPointError`` before it changes a weight if the gradient is not finite.  A captured
    one does not wait for the device: who reads the losses must look.
    """

    def __init__(self, model: nn.Module, average: AveragedModel, optimizer: torch.optim.AdamW, task: Task, s: TrainSettings):
        self.model, self.average, self.optimizer, self.task, self.settings = model, average, optimizer, task, s
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Drawn = ()  # on the device, where the graph reads them
        self.staging: Drawn = ()  # in pinned memory
        self.copied: torch.cuda.Event | None = None  # from the one to the other
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, drawn: Drawn, learning_rate: float) -> dict[str, Tensor]:
        """One step on what was drawn, on the CPU; the losses and the gradient's norm, scalars on the device."""
        self.calls += 1
        if not self.settings.captured:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            return self._step(tuple(tensor.to(self.settings.device) for tensor in drawn))
        self._load(drawn, learning_rate)
        if self.calls <= WARM_UP:
            return self._on_a_side_stream()
        graph = self.graph or self._capture()
        graph.replay()
        return {name: value.clone() for name, value in self.outputs.items()}

    def _step(self, drawn: Drawn) -> dict[str, Tensor]:
        s = self.settings
        kind = torch.device(s.device).type
        # the casts of weights are part of a graph: none may be kept from outside
        with torch.autocast(kind, torch.bfloat16, enabled=s.dtype == "bfloat16", cache_enabled=not s.captured):
            losses = self.task.losses(self.model, drawn)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
        if not s.captured and not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm.item()}")
        self.optimizer.step()
        self._update_average()
        return {name: value.detach() for name, value in losses.items()} | {"gradient": norm.detach()}

    def _update_average(self) -> None:
        if self.graph is None and not (self.settings.captured and torch.cuda.is_current_stream_capturing()):
            self.average.update_parameters(self.model)
            return
        # update_parameters reads its counter on the host; after the first step it does no more than this
        averages, values = (list(network.parameters()) for network in (self.average.module, self.model))
        get_ema_multi_avg_fn(self.settings.ema)(averages, values, None)
        self.average.n_averaged.add_(1)

    # --- the graph -----------------------------------------------------------------------------------------------------

    def _load(self, drawn: Drawn, learning_rate: float) -> None:
        """Put what a step reads where the graph finds it; the host waits for the copies of the step before alone."""
        if self.copied is None:
            self.inputs = tuple(torch.empty_like(tensor, device=self.settings.device) for tensor in drawn)
            self.staging = tuple(torch.empty_like(tensor).pin_memory() for tensor in drawn)
            self.copied = torch.cuda.Event()
        self.copied.synchronize()
        for tensor, pinned, static in zip(drawn, self.staging, self.inputs, strict=True):
            pinned.copy_(tensor)
            static.copy_(pinned, non_blocking=True)
        self.copied.record()
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate)

    def _on_a_side_stream(self) -> dict[str, Tensor]:
        """A step without a graph, where capture will run it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self._step(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _capture(self) -> torch.cuda.CUDAGraph:
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.outputs = self._step(self.inputs)
        self.graph = graph
        return graph
