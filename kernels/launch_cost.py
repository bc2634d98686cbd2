"""What one launch of a kernel computes and moves, read from its arguments.

The counts are those of the ``flops`` and ``bytes_moved`` beside each kernel.  A kernel without an entry in :data:`COSTS` is
refused, so that none is left out of a census.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import (
    adaln,
    attention,
    combine,
    embed,
    fp8,
    gather,
    gram,
    mlp,
    normalized_attention,
    philox,
    qkv,
    readout,
    sparse_attention,
)
from .matmul import GATED_RESIDUAL
from .triton_runtime import Launch

PRODUCT, ATTENTION, MEMORY = "product", "attention", "memory"  # what bounds a kernel


@dataclass(frozen=True)
class LaunchCost:
    """``flops`` of matrix products alone, 2 per multiply-add; least device-memory traffic in ``bytes``; sizes for people.

    ``problems`` are (count, M, K, N) of the matrix products of a kernel whose ``work`` they are, and (R H, T, S, K) of an
    attention with queries T and keys S.
    """

    work: str
    flops: int
    bytes: int
    sizes: str
    problems: tuple[tuple[int, int, int, int], ...] = ()


def launch_cost(launch: Launch) -> LaunchCost:
    """The cost of a launch; raises ``ValueError`` for a kernel that has no entry."""
    if launch.name not in COSTS:
        raise ValueError(f"kernel {launch.name} has no entry in kernels/launch_cost.py; known: {', '.join(COSTS)}")
    return COSTS[launch.name](launch, launch.arguments)


def _memory(moved: int, sizes: str, flops: int = 0) -> LaunchCost:
    return LaunchCost(MEMORY, flops, moved, sizes)


def _adaln(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    rows, tokens, width = given["p_h"].shape
    residuals, outputs, quantised = given["RESIDUALS"], given["OUTPUTS"], given["FP8_TOP"] > 0
    moved = adaln.bytes_moved(rows, tokens, width, given["p_h"].element_size(), residuals, outputs, quantised)
    return _memory(moved, f"{rows} x {tokens} x {width}, residuals {residuals}, outputs {outputs}{' in fp8' * quantised}")


def _quantize(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    streams = [given[f"p_x{suffix}"].shape[:2] for suffix in ("", "2", "3")[: given["STREAMS"]]]
    width, itemsize = given["D"], given["p_x"].element_size()
    counts = " + ".join(f"{rows} x {tokens}" for rows, tokens in streams)
    sizes = f"{counts if len(streams) == 1 else f'({counts})'} x {width}{', GELU' * given['GELU']}"
    return _memory(sum(fp8.bytes_moved(rows, tokens, width, itemsize) for rows, tokens in streams), sizes)


def _heads(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    parts, rows, tokens, heads, head_dim = given["p_out"].shape
    moved = qkv.bytes_moved(rows, tokens, heads * head_dim, given["p_out"].element_size(), parts)
    return _memory(moved, f"{parts} x {rows} x {tokens} x {heads} x {head_dim}")


def _attention(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    (rows, heads, queries, head_dim), keys = given["p_q"].shape, given["keys"]
    counts = rows, heads, queries, keys, head_dim
    sizes = f"{rows} x {heads} x {queries} x {head_dim}, {keys} keys"
    moved = attention.bytes_moved(*counts, given["p_q"].element_size()) + 4 * rows * heads * queries * given["LSE"]
    return LaunchCost(ATTENTION, attention.flops(*counts), moved, sizes, ((rows * heads, queries, keys, head_dim),))


def _spread(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    (rows, heads, tokens, head_dim), keys = given["p_q"].shape, given["COUNT"]
    counts = rows, heads, tokens, keys, head_dim
    moved, work = sparse_attention.bytes_moved(*counts, given["p_q"].element_size()), sparse_attention.flops(*counts)
    problems = ((rows * heads, tokens, head_dim, keys),)
    return LaunchCost(PRODUCT, work, moved, f"{rows} x {heads} x {tokens} x {head_dim}, {keys} keys", problems)


def _merge(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    rows, tokens, text, heads = launch.grid[1], given["tokens"], given["text"], given["HEADS"]
    width = heads * given["K"]
    moved = normalized_attention.bytes_moved(rows, tokens, text, heads, width, given["p_out"].element_size())
    return _memory(moved, f"{rows} x ({tokens} + 2 x {text}) x {width}")


def _linear(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    inputs, outputs, residual = given["K"], given["N"], given["EPILOGUE"] == GATED_RESIDUAL
    counts = tuple(given[f"rows{suffix}"] * given[f"tokens{suffix}"] for suffix in ("", "2")[: 1 + given["GROUPED"]])
    moved = sum(mlp.bytes_moved(count, inputs, outputs, given["p_out"].element_size(), residual) for count in counts)
    sizes = f"{' + '.join(map(str, counts))} x {inputs} -> {outputs}"
    problems = tuple((1, count, inputs, outputs) for count in counts)
    return LaunchCost(PRODUCT, mlp.flops(sum(counts), inputs, outputs), moved, sizes, problems)


def _readout(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    samples, tokens = launch.grid[1], given["tokens"]
    branches, width, outputs = given["BRANCHES"], given["D"], given["OUTPUTS"]
    itemsize = given["p_h"].element_size()
    moved = readout.bytes_moved(samples, branches, tokens, width, outputs, itemsize, given["UPDATE"], given["EARLIER"])
    moved += 4 * samples * tokens * outputs * bool(given["NOISE"])
    sizes = f"{branches} x {samples} x {tokens} x {width} -> {outputs}"
    return _memory(moved, sizes, mlp.flops(samples * tokens, width, outputs))


def _embed(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    (roots, samples, tokens, width), inputs = given["p_out"].shape, given["CHANNELS"] * given["PATCH"] ** 2
    moved = embed.bytes_moved(samples, roots, tokens, inputs, width, given["p_out"].element_size())
    sizes = f"{samples} x {tokens} x {inputs} -> {roots} x {width}"
    return _memory(moved, sizes, mlp.flops(samples * tokens, inputs, width))


def _modulation(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    rows, width = launch.grid[1], given["W"]
    return _memory(gather.modulation_bytes_moved(rows, width, given["p_table"].element_size()), f"{rows} x {width}")


def _gather(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    rows, width = launch.grid[1], given["W"]
    return _memory(gather.bytes_moved(rows, width, given["p_table"].element_size()), f"{rows} x {width}")


def _solver(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    samples, elements = launch.grid[1], given["elements"]
    moved = combine.bytes_moved(samples, elements, bool(given["NOISE"]), given["EARLIER"])
    return _memory(moved, f"{samples} x {elements}")


def _branches(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    samples, branches = launch.grid[1], given["BRANCHES"]
    elements = given["CHANNELS"] * given["height"] * given["width"]
    moved = combine.combine_bytes_moved(samples, branches, elements, given["p_outputs"].element_size())
    return _memory(moved, f"{branches} x {samples} x {elements}")


def _states(outputs: Callable[[dict[str, Any]], int]) -> Callable[[Launch, dict[str, Any]], LaunchCost]:
    """A pass over a few states of the sample's size, that leaves so many of them."""

    def cost(launch: Launch, given: dict[str, Any]) -> LaunchCost:
        samples, elements, count = launch.grid[1], given["elements"], given["COUNT"]
        return _memory(gram.bytes_moved(samples, elements, count, outputs(given)), f"{count} x {samples} x {elements}")

    return cost


def _merged(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    """What the blocks left is small and lies in L2."""
    return _memory(0, f"{launch.grid[1]} x {given['blocks']} blocks")


def _philox(launch: Launch, given: dict[str, Any]) -> LaunchCost:
    samples, elements = launch.grid[1], given["elements"]
    return _memory(philox.bytes_moved(samples, elements) * (1 if given["NORMAL"] else 2), f"{samples} x {elements}")


COSTS: dict[str, Callable[[Launch, dict[str, Any]], LaunchCost]] = {
    "adaln_kernel": _adaln,
    "quantize_kernel": _quantize,
    "heads_kernel": _heads,
    "attention_kernel": _attention,
    "spread_kernel": _spread,
    "merge_kernel": _merge,
    "linear_kernel": _linear,
    "embed_kernel": _embed,
    "readout_kernel": _readout,
    "gather_kernel": _gather,
    "modulation_kernel": _modulation,
    "solver_kernel": _solver,
    "branches_kernel": _branches,
    "block_moments_kernel": _states(lambda given: 0),
    "merge_moments_kernel": _merged,
    "linear_combination_kernel": _states(lambda given: given["OUTPUTS"]),
    "philox_kernel": _philox,
}
