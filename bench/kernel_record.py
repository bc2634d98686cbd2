"""One kernel of a step as the census counts it."""

from dataclasses import dataclass

from segue.kernels.launch_cost import ATTENTION, MEMORY, PRODUCT

OWN, PYTORCH, COPY = "own", "pytorch", "copy"
KINDS = (PRODUCT, ATTENTION, OWN, PYTORCH)  # what is counted as a kernel; a copy is a node of a graph, but no kernel


@dataclass(frozen=True)
class Kernel:
    """``flops`` of matrix products, 2 per multiply-add; ``bytes`` of least device-memory traffic; ``dtype`` of its operands.

    ``work`` is what bounds it: ``product`` with its ``problems`` (count, M, K, N), ``attention`` with (R H, T, S, K) as the
    only one, or ``memory``.
    """

    kind: str
    name: str
    sizes: str
    flops: int
    bytes: int
    dtype: str
    work: str = MEMORY
    problems: tuple[tuple[int, int, int, int], ...] = ()
