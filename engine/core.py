"""What every engine does whatever its conditions are: hold networks, plan, keep programs, run them, explain itself."""

import copy
import math
import secrets
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from segue.kernels.dispatch import Shapes, parse_kernels, select_kernels
from segue.kernels.flash_attention import LARGEST_SCORE
from segue.models.attention_kind import FULL_ATTENTION, told_budgets
from segue.models.block_linears import check_block_linears
from segue.models.fingerprint import rounded_fingerprint
from segue.models.fp8_network import Fp8Layers
from segue.models.mmdit import MMDiT
from segue.models.parameterization import Parameterization
from segue.models.spec import ModelSpec
from segue.models.weight_watch import WeightWatch
from segue.models.wrapped_modules import unwrapped

from .argument_names import refuses_unknown
from .device import check_graphs, resolve_device, resolve_dtype
from .linears import check_linears, explain_linears, with_linears
from .numeric_input import check_seed, counting_number, scalar, whole_number
from .planning.compile import compile_plan, plan_part, with_decoder_flops
from .planning.merged_adapter import MergedAdapter
from .planning.plan import Plan, checked_size
from .planning.plan_warnings import warn_caller
from .planning.schedule import Schedule, resolve_schedule
from .planning.solver_rows import Solver
from .planning.solvers import get_solver
from .rules.batch import RulesLike
from .running.graph import CudaCapture
from .running.program import Program
from .running.program_key import ProgramKey
from .running.progress import Counting, progress_bar
from .running.sampler import Callback, CallInfo, run_program
from .scheduling.drawing import Drawing
from .scheduling.scheduler import StepScheduler

ScheduleLike = str | Schedule | Sequence[float]


class EngineCore:
    """Networks on a device, and the programs built for them.  ``models["main"]`` is the network that is sampled.

    ``graphs`` captures steps as CUDA graphs (default: on CUDA); ``False`` runs the same steps eagerly.  ``kernels`` chooses
    implementations: ``auto``, ``reference``, ``triton``, ``compiled`` (the reference through ``torch.compile``), or for single
    operations ``auto,attention=triton``.  ``linears``: ``native``, or ``fp8``, an approximation that multiplies the large
    matrices of the blocks in fp8 (see :mod:`.linears`).
    """

    MAX_PROGRAMS = 8
    owns_weights = True  # nobody else writes into them, as into those of a live pipeline
    adapted: MergedAdapter | None = None  # the adapter in the weights of the main network
    loaded: tuple[str, dict[str, Any]] | None = None  # the source, and how it was read, where the networks have one
    drawing: Callable[..., Drawing]  # of engines that draw labels or prompts: a planned run of one sample, for a scheduler
    _norms: WeightWatch | None = None  # the weights that the bound of attention's scores was found with
    _rounded: tuple[Mapping[str, nn.Module], tuple[str, ...], str] | None = None  # networks, and their rounded fingerprint

    def __init__(
        self,
        model: nn.Module,
        models: Mapping[str, nn.Module] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
    ):
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.linears = check_linears(linears, self.device, self.dtype, kernels)
        if "main" in (models or {}):
            raise ValueError("further networks need names of their own: 'main' is the network that is sampled")
        networks = {name: _network(module) for name, module in {"main": model, **(models or {})}.items()}
        for network in networks.values():
            check_block_linears(network)
        check_graphs(graphs, self.device)
        backend, overrides = parse_kernels(kernels)
        shapes = network_shapes(networks, self.dtype if self.owns_weights else None)
        self.selection = select_kernels(self.device, self.dtype, shapes, backend=backend, overrides=overrides)
        self.models = {
            name: with_linears(placed(network, self.device, self.dtype), self.linears) for name, network in networks.items()
        }
        use_graphs = self.device.type == "cuda" if graphs is None else graphs
        self.capture = CudaCapture(self.device) if use_graphs else None
        self._programs: dict[int, Program] = {}  # by id, free for the next run; one that is in a run is not among them
        self._taken: weakref.WeakValueDictionary[int, Program] = weakref.WeakValueDictionary()  # those in a run

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.name} on {self.device} in {str(self.dtype).removeprefix('torch.')}>"

    @property
    def spec(self) -> ModelSpec:
        return self.models["main"].spec

    @property
    def specs(self) -> dict[str, ModelSpec]:
        return {name: model.spec for name, model in self.models.items()}

    @refuses_unknown()
    def plan(
        self,
        guidance: RulesLike = None,
        steps: int | None = None,
        schedule: ScheduleLike | None = None,
        solver: str | Solver = "euler",
        height: int | None = None,
        width: int | None = None,
    ) -> Plan:
        """Resolve a rule, or its text, without running it; ``print(plan)`` shows who runs when and what it costs.

        A rule with a number for each sample, or a list of a rule for each, is for a batch of that many: a branch runs in a call
        if any of them needs it there.
        ``height`` and ``width`` are the latent size, by default the model's own.
        """
        return self._told(resolve_plan(self.specs, guidance, steps, schedule, solver, height, width))

    def _told(self, plan: Plan) -> Plan:
        """``plan`` with what is to be said of a rule: on top of an adapter, and what decoding for a classifier costs.

        Refused for a calibration of other networks.
        """
        if self.models:
            self.check_calibration(plan)
        plan = with_decoder_flops(plan, self.device, self.estimates_decoder()) if plan.classifier_flops else plan
        return plan if self.adapted is None else self.adapted.warn(plan)

    def estimates_decoder(self) -> Callable[[Tensor], Tensor] | None:
        """What makes pictures of latents for a classifier; None without a VAE."""
        return None

    def check_calibration(self, plan: Plan) -> None:
        """Raise ``ValueError`` for a rule that was calibrated on other networks than those that it runs on here."""
        if plan.calibration is None:
            return
        names = tuple(dict.fromkeys(branch.model for branch in plan.branches))
        known = self._rounded
        if known is None or known[0] is not self.models or known[1] != names:
            known = self._rounded = self.models, names, rounded_fingerprint({name: self.models[name] for name in names})
        plan.calibration.check_model(self.spec.name, known[2])

    def draw_noise(self, plan: Plan, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Unit normal noise [B, C, H, W], one generator per sample, the same numbers on every machine."""
        shape = (self.spec.channels, plan.height, plan.width)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn(shape, generator=own, dtype=dtype, device="cpu") for own in generators])

    def check_noise(self, plan: Plan, noise: Tensor, count: int, name: str = "noise") -> Tensor:
        """``noise`` if it is a tensor with the shape of ``count`` samples, else ``TypeError`` or ``ValueError``."""
        shape = (count, self.spec.channels, plan.height, plan.width)
        if not isinstance(noise, Tensor):
            raise TypeError(f"{name} must be a tensor of shape {shape}, got a {type(noise).__name__}")
        if tuple(noise.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(noise.shape)}")
        if noise.is_complex() or not torch.isfinite(noise).all():
            raise ValueError(f"{name} must be real and finite, and some values of this {noise.dtype} tensor are not")
        return noise

    def noised_start(self, plan: Plan, noise: Tensor, latents: Tensor) -> Tensor:
        """A clean start [B, C, H, W] at the plan's first noise level, fp32, in flow coordinates."""
        sigma = plan.solver.first_level(float(plan.sigmas[0]))
        latents = self.check_noise(plan, latents, len(noise), "latents")
        if sigma >= 1:
            warn_caller("the run begins at level 1, pure noise, where what it starts from does not count: begin lower")
        return sigma * noise.float() + (1 - sigma) * latents.float().to(noise.device)

    def prepare(self, plan: Plan, conditions: Mapping[str | int, Any], seeds: Sequence[int], state: Tensor) -> Program:
        """A program holding this run, new or reused: the caller's alone until :meth:`release`.

        So runs may nest (in a callback) and threads may run side by side, each in a program of its own.
        conditions: for each condition of the plan what the model's rows take, B long; state [B, C, H, W] fp32, the sample
        at the first noise level in flow coordinates.  Raises ``ValueError`` for a plan of another number of samples.
        """
        plan.check_samples(len(seeds))
        self.check_calibration(plan)
        self._check_scores()
        for network in self.models.values():
            check_block_linears(network)  # an adapter may have come since
        key = ProgramKey.of(plan, len(seeds))
        program = self._free_program(key) or self._build(key, plan)
        self._taken[id(program)] = program
        try:
            program.load(plan, state.to(self.device, torch.float32), conditions, list(seeds))
        except BaseException:
            self.release(program)
            raise
        return program

    def release(self, program: Program) -> None:
        """Give a program back, for later runs to load; the caller must not use it any more.

        One that is not given back is dropped with its last reference, and so is one whose networks this engine has left.
        """
        self._taken.pop(id(program), None)
        if program.models is self.models:
            self._programs[id(program)] = program  # last: the most recently used
            self._drop_programs(beyond=self.MAX_PROGRAMS)

    def _free_program(self, key: ProgramKey) -> Program | None:
        """The free program that served last among those that can hold ``key``, not free any more; None if there is none."""
        for name in reversed(list(self._programs)):
            program = self._programs.get(name)  # None, here and below: another thread was faster
            if program is not None and program.key.serves(key) and self._programs.pop(name, None) is not None:
                return program
        return None

    def _build(self, key: ProgramKey, plan: Plan) -> Program:
        """A new program, in the place of the least recently used one when there are many."""
        self._drop_programs(beyond=self.MAX_PROGRAMS - 1)
        program = Program(key, plan, self.models, self.device, self.selection.kernels, self.estimates_decoder())
        if self.capture is not None:
            program.use_graphs(self.capture)
        return program

    def _drop_programs(self, beyond: int) -> None:
        """Drop the free programs that were used least recently."""
        for name in list(self._programs)[:-beyond]:
            self._programs.pop(name, None)

    def run(
        self,
        plan: Plan,
        conditions: Mapping[str | int, Any],
        seeds: Sequence[int],
        state: Tensor,
        *,
        max_batch: int | None = None,
        callback: Callback | None = None,
        check_finite: bool = False,
        progress: bool = False,
    ) -> tuple[Tensor, int]:
        """Run a plan for B samples in batches of at most ``max_batch``; returns (latents [B, C, H, W] fp32, calls made).

        Where samples have rules of their own, a batch evaluates what its own samples need: at most what the plan says.
        ``progress`` shows a bar of the network calls on stderr, if that is a terminal.
        """
        plan.check_samples(len(seeds))
        chunk = len(seeds) if max_batch is None else counting_number(max_batch, "max_batch")
        latents, calls = [], plan.calls
        with progress_bar(self.spec.name, plan.calls * -(-len(seeds) // chunk), shown=progress) as advance:
            for first in range(0, len(seeds), chunk):
                part = slice(first, first + chunk)
                own = {name: value[part] for name, value in conditions.items()}
                program = self.prepare(plan_part(plan, part), own, seeds[part], state[part])
                try:
                    calls = run_program(program, Counting(self.followed(callback, program), advance), check_finite)
                    latents.append(program.x.clone())
                finally:
                    self.release(program)
                if calls < plan.calls:
                    break
        return torch.cat(latents), calls

    def refresh(self) -> None:
        """Look at the networks, as a run does when it begins: those of this engine are its own and stay as they are."""

    def is_current(self) -> bool:
        """Whether a run that began now would keep the networks at hand."""
        return True

    def follow(self, program: Program, values: bool = True) -> None:
        """Let a run that is under way follow weights which have changed since its last call; see :class:`WeightWatch`."""
        program.follow_weights(values)
        self._check_scores(values)

    def _check_scores(self, values: bool = True) -> None:
        """Raise ``RuntimeError`` where attention keeps no running maximum and the weights have come to need one.

        They are looked at where they have changed; ``values``: see :class:`WeightWatch`.
        """
        if not self.selection.without_maximum:
            return
        if self._norms is not None and self._norms.unchanged(values):
            return
        if not (found := _largest_score(self.models)) <= LARGEST_SCORE:
            raise RuntimeError(
                f"the norms of queries and keys have come to allow exp(scores) of 2^{found:.4g}, and attention without a "
                f"running maximum holds 2^{LARGEST_SCORE:g}: make the engine with kernels='attention=triton'"
            )
        self._norms = WeightWatch(lambda: [weight for model in self.models.values() for weight in model.norm_weights()])

    @refuses_unknown()
    def scheduler(
        self, *, slots: int = 8, queue: int = 64, sizes: Sequence[int] | None = None, memory: int | None = None
    ) -> StepScheduler:
        """Draws requests that come at any time, from any thread: those that run share the forwards of their steps.

        ``slots`` run at once and ``queue`` more wait.  A forward has as many rows of a kind as one of ``sizes`` says: fewer are
        padded, and on CUDA each combination is captured once.  Without graphs every number is a size by default.  ``memory``:
        the bytes that the buffers of runs may take, by default most of what the device has free.
        """
        return StepScheduler(self, self.drawing, slots=slots, queue=queue, sizes=sizes, memory=memory)

    def networks_to_record(self) -> Mapping[str, nn.Module]:
        """The networks to run where gradients are wanted: those with the parameters that these shall reach."""
        return self.models

    def recorded_inputs(self) -> Iterator[Tensor]:
        """What gradients may be wanted of beside the state and the conditions: weights, but those that were quantised."""
        if self.linears == "native":
            for network in self.models.values():
                yield from network.parameters()

    def followed(self, callback: Callback | None, program: Program) -> Callback | None:
        """``callback``, after which the run follows the weights that it may have changed; a bar alone changes none."""
        if callback is None or (isinstance(callback, Counting) and callback.callback is None):
            return callback

        def call_then_follow(info: CallInfo) -> bool | None:
            answer = callback(info)
            if answer is not False and info.call + 1 < info.calls:
                self.follow(program)
            return answer

        return call_then_follow

    def explain(self) -> str:
        """What is loaded, where it runs, which programs and graphs exist."""
        lines = [f"device {self.device}, dtype {self.dtype}, graphs {'on' if self.capture else 'off'}"]
        lines += self.selection.explain()
        for name, model in self.models.items():
            count = sum(parameter.numel() for parameter in model.parameters()) + Fp8Layers.of(model).weights
            lines.append(f"network {name}: {model.spec.name}, {count / 1e6:.1f} M parameters, {model.spec.depth} layers")
            attention = getattr(model.spec, "attention", FULL_ATTENTION)
            if attention != FULL_ATTENTION:
                lines.append(f"  attention {attention}, an approximation: {told_budgets(model.spec)}")
            if name == "main" and self.adapted is not None:
                lines.append(f"  in its weights: {self.adapted.line}")
        if self.linears == "fp8":
            lines += explain_linears(self.models, self.dtype, self.selection)
        taken = [program for reference in self._taken.valuerefs() if (program := reference()) is not None]
        for program in [*self._programs.values(), *taken]:
            key = program.key
            branches = " | ".join(map(str, key.branches))
            lines.append(
                f"program: batch {key.batch}, {key.height} x {key.width}, up to {key.calls} calls, branches {branches}"
            )
            lines += [f"  {line}" for line in (program.graphs.explain() if program.graphs else [])]
        return "\n".join(lines)


def _network(module: nn.Module) -> nn.Module:
    """The network in ``module``, which training may have wrapped.  Raises ``TypeError`` for anything that is none of ours."""
    network = unwrapped(module)
    if not isinstance(getattr(network, "spec", None), ModelSpec):
        raise TypeError(f"an engine runs a SiT, a DiT or an MMDiT, got a {type(network).__name__}")
    return network


def network_shapes(models: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> Shapes:
    """The largest sizes of the networks, for the choice of kernels; with ``dtype`` also what bounds their scores in it."""
    specs = [model.spec for model in models.values()]
    outputs = max(spec.patch**2 * spec.channels for spec in specs)
    sizes = max(spec.head_dim for spec in specs), max(spec.dim for spec in specs), outputs
    return Shapes(*sizes) if dtype is None else Shapes(*sizes, _largest_score(models, dtype))


def _largest_score(models: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> float:
    """See :meth:`segue.models.mmdit.MMDiT.largest_score`; infinite for other networks."""
    return max(model.largest_score(dtype) if isinstance(model, MMDiT) else math.inf for model in models.values())


def resolve_plan(
    specs: Mapping[str, ModelSpec],
    guidance: RulesLike = None,
    steps: int | None = None,
    schedule: ScheduleLike | None = None,
    solver: str | Solver = "euler",
    height: int | None = None,
    width: int | None = None,
) -> Plan:
    """:meth:`EngineCore.plan` for networks that are known by their specs only."""
    spec, solver = specs["main"], get_solver(solver)
    height, width = checked_size(spec, height, width)
    resolved = resolve_schedule(schedule, steps, solver, Parameterization(spec), spec.tokens(height, width))
    return compile_plan(guidance, resolved, solver, specs, height, width)


def check_rising(plan: Plan, *starts: Any) -> None:
    """Raise ``ValueError`` for a run that adds noise to nothing: without any of ``starts``."""
    if plan.schedule.rises and all(start is None for start in starts):
        first, last = plan.schedule.sigmas[0], plan.schedule.sigmas[-1]
        raise ValueError(f"levels that rise from {first:.6g} to {last:.6g} invert a picture: give it as latents")


def whole_numbers(values: Any, what: str) -> list[int]:
    """``values`` as integers; anything that is not a list of whole numbers raises ``TypeError``."""
    if isinstance(values, str) or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) == 0:
        raise TypeError(f"{what} must be a list of whole numbers, got {values!r}")
    return [whole_number(value, f"{what} must be whole numbers") for value in values]


def placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """``network`` on a device and in a dtype; a copy if something has to change for that.

    The caller's network stays as it is, its training mode too, on which no network here depends: it may serve another engine,
    whose graphs hold its addresses.  Where buffers change only, the copy shares the weights.
    """

    def fits(tensor: Tensor) -> bool:
        return tensor.device == device and (tensor.dtype == dtype or not tensor.is_floating_point())

    parameters, buffers = list(network.parameters()), list(network.buffers())
    if not all(map(fits, parameters)):
        network = copy.deepcopy(network)
    elif not all(map(fits, buffers)):
        network = copy.deepcopy(network, {id(tensor): tensor for tensor in (*parameters, *buffers)})
    return network.to(device, dtype)


def check_seeds(seeds: Sequence[int] | int | None, count: int) -> list[int]:
    """One seed in [0, 2^64) per sample: as given, ``seed, seed + 1, ...`` from one integer, or random.

    Noise inside the loop depends on all 64 bits; of the first noise, PyTorch's generator on the CPU reads the lower 32.
    """
    if seeds is None:
        return [secrets.randbits(32) for _ in range(count)]
    first = scalar(seeds)
    if isinstance(first, Integral) and not isinstance(first, bool):
        seeds = range(int(first), int(first) + count)
    seeds = whole_numbers(seeds, "seeds")
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds do not fit {count} samples")
    return [check_seed(seed) for seed in seeds]
