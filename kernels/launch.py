"""Launch configurations as frozen dataclasses; :mod:`segue.kernels.launch_table` holds their numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RowLaunch:
    """A kernel that walks whole rows: ``rows`` of them per program."""

    rows: int
    warps: int


@dataclass(frozen=True)
class FlatLaunch:
    """An elementwise kernel: ``block`` elements per program."""

    block: int
    warps: int


@dataclass(frozen=True)
class AttentionLaunch:
    """``block_q`` queries per program, ``block_k`` keys per iteration, ``stages`` key blocks in flight."""

    block_q: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class MatmulLaunch:
    """An output tile of ``block_m`` x ``block_n``; ``block_k`` is counted in 16-bit elements; ``group`` row tiles share L2.

    Of a persistent kernel ``resident`` programs are started for each multiprocessor.
    """

    block_m: int
    block_n: int
    block_k: int
    group: int
    warps: int
    stages: int
    resident: int = 1


@dataclass(frozen=True)
class ReadoutLaunch:
    """``tokens`` per program, ``width`` hidden channels per iteration."""

    tokens: int
    width: int
    warps: int
    stages: int


LaunchConfig = RowLaunch | FlatLaunch | AttentionLaunch | MatmulLaunch | ReadoutLaunch

Key = tuple[str, str]  # operation, shape class
