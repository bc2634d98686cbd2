"""What a step consists of, kernel by kernel, without a GPU: the step of each live set is run on meta tensors.

The kernels are those that are chosen on a named card.  Nothing here knows a model: what the step calls is what is counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from segue.engine.core import network_shapes
from segue.engine.linears import check_linears, with_linears
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey
from segue.kernels.dispatch import Selection, parse_kernels, select_kernels
from segue.kernels.launch_cost import MEMORY, launch_cost
from segue.kernels.triton_runtime import Chip, Launch, trace_launches
from segue.models.registry import make_network
from segue.models.spec import ModelSpec
from segue.models.unallocated import unallocated

from .aten_kernels import aten_kernels, attention_kernels, dtype_text
from .cards import Card
from .cases import BenchModel
from .kernel_record import COPY, OWN, Kernel
from .predict import kernel_seconds

META, CUDA = torch.device("meta"), torch.device("cuda")
HALF = (torch.bfloat16, torch.float16)
PLAIN = (0,)  # the conditional branch alone


@dataclass(frozen=True)
class Total:
    """Of some kernels: how many, FLOPs of their matrix products, bytes, and predicted seconds."""

    kernels: int = 0
    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Total") -> "Total":
        return Total(*(mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, int, int, float]:
        return self.kernels, self.flops, self.bytes, self.seconds


@dataclass(frozen=True)
class StepCensus:
    """The kernels of one step with the branches ``branches``, counted: ``kernels[k]`` is how often kernel ``k`` runs."""

    branches: tuple[str, ...]
    calls: int
    kernels: Counter[Kernel]
    card: Card

    def total(self, kernels: Iterable[Kernel] | None = None) -> Total:
        """Of ``kernels``, by default of all; copies have bytes and seconds but are no kernels."""
        total = Total()
        for kernel in self.kernels if kernels is None else kernels:
            count = self.kernels[kernel]
            launched = 0 if kernel.kind == COPY else count
            seconds = count * kernel_seconds(kernel, self.card)
            total += Total(launched, count * kernel.flops, count * kernel.bytes, seconds)
        return total

    def groups(self, *fields: str) -> dict[tuple, Total]:
        """Totals of the kernels that agree in these fields of :class:`Kernel`, the slowest first."""
        members: dict[tuple, list[Kernel]] = {}
        for kernel in self.kernels:
            members.setdefault(tuple(getattr(kernel, field) for field in fields), []).append(kernel)
        totals = {key: self.total(kernels) for key, kernels in members.items()}
        return dict(sorted(totals.items(), key=lambda item: -item[1].seconds))

    @cached_property
    def copies(self) -> int:
        return sum(count for kernel, count in self.kernels.items() if kernel.kind == COPY)


@dataclass(frozen=True)
class Census:
    """The steps of a rule on a model, by live set; the conditional branch alone stands first."""

    model: str
    rule: str
    batch: int
    dtype: str
    linears: str
    card: Card
    selection: Selection
    steps: tuple[StepCensus, ...]

    @property
    def seconds(self) -> float:
        """Predicted seconds of a whole run."""
        return sum(step.calls * step.total().seconds for step in self.steps)

    def kernel_seconds(self, kernel: Kernel) -> float:
        """Predicted seconds of one run of a kernel on the census's card."""
        return kernel_seconds(kernel, self.card)


def take_census(
    model: BenchModel, card: Card, rule: str = "sgg", batch: int = 1, dtype: torch.dtype = torch.bfloat16,
    kernels: str = "auto", calls: int = 28, linears: str = "native",
) -> Census:  # fmt: skip
    """Count the steps of a rule of :meth:`.cases.BenchModel.rule` with the kernels that ``kernels`` chooses on ``card``.

    ``linears``: in what the large linear layers compute, as for an engine.  Raises ``ValueError`` for bad options, and for
    operations whose kernels are not known.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    plan = model.plan(rule, calls)
    backend, overrides = parse_kernels(kernels)
    with trace_launches(card.chip):
        check_linears(linears, CUDA, dtype, kernels)
        networks = {name: meta_network(spec, dtype, linears) for name, spec in plan.specs.items()}
        selection = select_kernels(CUDA, dtype, network_shapes(networks), backend=backend, overrides=overrides)
        program = Program(ProgramKey.of(plan, batch), plan, networks, META, selection.kernels)
    steps = []
    for live in dict.fromkeys((PLAIN, *plan.live_sets)):
        branches = tuple(str(plan.branches[i]) for i in live)
        steps.append(StepCensus(branches, plan.live.count(live), Counter(step_kernels(program, live, card.chip)), card))
    return Census(model.text, rule, batch, str(dtype).removeprefix("torch."), linears, card, selection, tuple(steps))


def meta_network(spec: ModelSpec, dtype: torch.dtype, linears: str = "native") -> nn.Module:
    """A network without weights, its block linears as ``linears`` says."""
    with unallocated():
        network = make_network(spec)
    return with_linears(network.to(dtype).eval().requires_grad_(False), linears)


def step_kernels(program: Program, live: tuple[int, ...], chip: Chip) -> list[Kernel]:
    """Every kernel and copy of one step of a program on meta tensors."""
    return recorded_kernels(lambda: program.step(live), chip)


def recorded_kernels(run: Callable[[], object], chip: Chip) -> list[Kernel]:
    """Every kernel and copy of what ``run`` does on meta tensors: own ones first, then PyTorch's in their order."""
    with trace_launches(chip) as launches, _Attention(chip) as attention, _Operations(chip) as operations:
        run()
    return [own_kernel(launch) for launch in launches] + attention.kernels + operations.kernels


def own_kernel(launch: Launch) -> Kernel:
    """A launch of this project's; matrix products and attention are of their own kinds, as the vendor's are."""
    cost = launch_cost(launch)
    first = next(value for value in launch.arguments.values() if isinstance(value, torch.Tensor))
    kind = OWN if cost.work == MEMORY else cost.work
    return Kernel(kind, launch.name, cost.sizes, cost.flops, cost.bytes, dtype_text(first), cost.work, cost.problems)


class _Operations(TorchDispatchMode):
    """The kernels of the operations that PyTorch runs."""

    def __init__(self, chip: Chip):
        super().__init__()
        self.chip, self.kernels = chip, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.kernels += aten_kernels(function, args, kwargs or {}, out, self.chip)
        return out


class _Attention(TorchFunctionMode):
    """Attention by the first of PyTorch's kernels that is switched on and takes the precision, cuDNN's before flash's.

    Meta tensors would be given the plain formula.
    """

    def __init__(self, chip: Chip):
        super().__init__()
        self.chip, self.kernels = chip, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v = args
        self.kernels += attention_kernels(q, k, v, self._backend(q), self.chip)
        rows, heads, tokens, head_dim = q.shape
        return q.new_empty(rows, tokens, heads, head_dim).transpose(1, 2)  # the order that all of them write

    def _backend(self, q: torch.Tensor) -> str:
        switches = torch.backends.cuda
        if q.dtype in HALF and self.chip.cudnn and switches.cudnn_sdp_enabled():
            return "cudnn"
        if q.dtype in HALF and switches.flash_sdp_enabled():
            return "flash"
        if switches.mem_efficient_sdp_enabled():
            return "efficient"
        raise ValueError(f"no fused attention of PyTorch takes {dtype_text(q)}; the census does not count the plain formula")
