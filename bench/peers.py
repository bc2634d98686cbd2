"""Other ways to draw the same samples, run beside ours in the same session; a peer that is missing gives one line."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cases import SCALE, WEIGHT, Workload
from .correctness import full_single, peer_gate
from .diffusers_loop import RULES, DiffusersLoop
from .diffusers_modules import compile_blocks, with_weights_of
from .workloads import GATE_CALLS, in_single

Draw = Callable[[], Tensor]
Check = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Peer:
    """One variant of a case: its name, the guidance rule, what was run in words, and the function that draws the batch.

    ``check`` gives what it computes and what it should, on the same weights: a draw in few calls, in which rounding has not
    grown, in fp32.  Segue is the reference of the plain loop, the plain loop that of what is built on it.  None for an
    approximation, which has no figure of this kind.
    """

    name: str
    rule: str
    what: str
    draw: Draw
    check: Check | None = None


class PeerMissing(RuntimeError):
    """A peer cannot run this model; the message says why."""


ROWS = {"none": "one row per sample", "cfg": "two rows per sample", "sgg": "two rows always and a whole weak pass"}


def _loop(workload: Workload, calls: int) -> DiffusersLoop:
    engine = workload.engine
    try:
        module = with_weights_of(engine.models["main"])
    except ValueError as error:
        raise PeerMissing(str(error)) from error
    noise = workload.state(workload.plan(workload.model.rule("none"), calls))
    return DiffusersLoop(module, workload.model, workload.batch, calls, engine.device, engine.dtype, noise)


def _checked(workload: Workload, loop: DiffusersLoop) -> tuple[Workload, DiffusersLoop]:
    """Workload and loop in fp32, in as many calls as a gate makes: in half precision the rounding of states would decide."""
    calls, single = min(loop.calls, GATE_CALLS), in_single(workload)
    return single, replace(loop, calls=calls) if single is workload else _loop(single, calls)


def _title(rule: str) -> str:
    return "sgg as published" if rule == "sgg" else rule


def eager(workload: Workload, calls: int) -> list[Peer]:
    """diffusers as it is: unguided, CFG, and the published SGG algorithm on its modules; Segue is their reference."""
    loop = _loop(workload, calls)

    def peer(rule: str) -> Peer:
        def check() -> tuple[Tensor, Tensor]:
            single, short = _checked(workload, loop)
            plan = single.plan(single.model.rule(rule), short.calls)
            return short.draw(rule)(), single.sampler(plan)().clone()

        what = f"{type(loop.module).__name__}, {ROWS[rule]}"
        return Peer(f"diffusers eager {_title(rule)}", rule, what, loop.draw(rule), check)

    return [peer(rule) for rule in RULES]


def compiled(workload: Workload, calls: int) -> list[Peer]:
    """The same with every transformer block compiled by ``torch.compile`` (regional compilation), once for every shape.

    Checked by one evaluation of both rows: the loop is the plain one.
    """
    loop = _loop(workload, calls)
    compile_blocks(loop.module)

    @torch.no_grad()
    def check() -> tuple[Tensor, Tensor]:
        drawn = torch.cat(loop.both(loop.noise, 0))
        with torch.compiler.set_stance("force_eager"):
            return drawn, torch.cat(loop.both(loop.noise, 0))

    what = f"{type(loop.module).__name__}, each block under torch.compile(dynamic=False)"
    return [Peer(f"diffusers compiled {_title(rule)}", rule, f"{what}, {ROWS[rule]}", loop.draw(rule), check) for rule in RULES]


def modular(workload: Workload, calls: int) -> list[Peer]:
    """diffusers' modular guiders, driven as its modular SD3 pipeline drives them: one forward per prediction."""
    loop = _loop(workload, calls)
    from diffusers.guiders import ClassifierFreeGuidance, SkipLayerGuidance

    def skip_layer(calls: int) -> SkipLayerGuidance:
        return SkipLayerGuidance(
            guidance_scale=SCALE,
            skip_layer_guidance_scale=WEIGHT,
            skip_layer_guidance_layers=list(workload.model.layers),
            skip_layer_guidance_start=max(0.0, 0.5 - 1 / calls),  # its window excludes the first step
            skip_layer_guidance_stop=1.0,
            stop=0.5,
        )

    guiders = {"cfg": lambda _calls: ClassifierFreeGuidance(guidance_scale=SCALE), "sgg": skip_layer}
    data = {name: (value, loop.uncond[name]) for name, value in loop.cond.items()}

    def draw(loop: DiffusersLoop, rule: str) -> Draw:
        guider = guiders[rule](loop.calls)

        def guided(_rule: str, x: Tensor, call: int) -> Tensor:
            time = torch.tensor(1000 * loop.sigmas[call])
            guider.set_state(step=call, num_inference_steps=loop.calls, timestep=time)
            batches = guider.prepare_inputs(data)
            for batch in batches:
                guider.prepare_models(loop.module)
                batch.noise_pred = loop.output(x, call, {name: getattr(batch, name) for name in data})
                guider.cleanup_models(loop.module)
            return guider(batches).pred

        return loop.draw(rule, guided)

    def peer(rule: str) -> Peer:
        def check() -> tuple[Tensor, Tensor]:
            _, short = _checked(workload, loop)
            return draw(short, rule)(), short.draw(rule)()

        kind = type(guiders[rule](calls)).__name__
        what = f"{type(loop.module).__name__} under {kind}, one forward per prediction"
        return Peer(f"modular guider {rule}", rule, what, draw(loop, rule), check)

    return [peer(rule) for rule in guiders]


def cache_dit(workload: Workload, calls: int) -> list[Peer]:
    """cache-dit around the diffusers module; approximate."""
    loop = _loop(workload, calls)
    if not hasattr(loop.module, "time_text_embed"):
        raise PeerMissing("cache-dit supports the SD3 transformer here, not the class-conditional one")
    import cache_dit as package

    blocks = package.BlockAdapter(
        transformer=loop.module,
        blocks=loop.module.transformer_blocks,
        forward_pattern=package.ForwardPattern.Pattern_1,
    )
    package.enable_cache(blocks, cache_config=package.DBCacheConfig(num_inference_steps=calls))
    plain = loop.draw("none")

    def draw() -> Tensor:
        package.refresh_context(loop.module, num_inference_steps=calls, verbose=False)
        return plain()

    what = "DBCache with its defaults, approximate; what it reuses depends on the weights, and these are random"
    return [Peer("cache-dit none", "none", what, draw)]


def xdit(workload: Workload, calls: int) -> list[Peer]:
    """xDiT spreads one sample over several accelerators."""
    raise PeerMissing("xDiT is installed, and parallelises over several GPUs; on one it runs the diffusers modules unchanged")


# group -> the packages it needs, and the function that makes its peers
GROUPS: Mapping[str, tuple[tuple[str, ...], Callable[[Workload, int], list[Peer]]]] = {
    "eager": (("diffusers",), eager),
    "compiled": (("diffusers",), compiled),
    "modular": (("diffusers",), modular),
    "cache-dit": (("diffusers", "cache_dit"), cache_dit),
    "xdit": (("xfuser",), xdit),
}


def missing_packages(group: str) -> list[str]:
    """The packages that a group of peers needs and that are not installed."""
    return [name for name in GROUPS[group][0] if importlib.util.find_spec(name) is None]


def make_peers(
    group: str, workload: Workload, calls: int, echo: Callable[[str], None], rules: Iterable[str] = RULES
) -> list[Peer]:
    """The peers of a group under ``rules`` that run here and draw what they should.

    One line says what is missing or fails, and why.
    """
    try:
        made = GROUPS[group][1](workload, calls)
    except Exception as error:  # other people's code may raise anything, and its failure is a result
        reason = error if isinstance(error, PeerMissing | ImportError) else _raised(error)
        echo(f"peer {group}: not run, {reason}")
        return []
    return [peer for peer in made if peer.rule in rules and _draws(peer, echo)]


def _raised(error: Exception) -> str:
    return f"it raised {type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _draws(peer: Peer, echo: Callable[[str], None]) -> bool:
    """Whether a peer runs and passes its gate."""
    try:
        finite = bool(torch.isfinite(peer.draw()).all())
        with full_single():
            gate = None if peer.check is None else peer_gate(*peer.check(), peer.name)
    except Exception as error:  # as above
        echo(f"peer {peer.name}: not run, {_raised(error)}")
        return False
    if not finite:
        echo(f"peer {peer.name}: not timed, what it draws is not finite")
    elif gate is not None and not gate.passed:
        echo(f"peer {peer.name}: not timed, it draws something else ({gate})")
    return finite and (gate is None or gate.passed)
