"""The gate before a timing: a result that is wrong is never reported as fast."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Two fp32 evaluations of up to 60 calls each stay within 2e-5 of exact on small networks (the engine's oracle test); errors
# of deeper networks add like independent ones: sqrt(38 / 5) * 2 * 2e-5 < 1.2e-4.
FP32_BOUND = 1.2e-4
# In half precision the bound is what plain PyTorch modules err by in the same precision, doubled as for single kernels.
HALF_FACTOR = 2.0
# Two half-precision runs of one peer in another order of operations: bf16 rounds to 2^-9, guidance multiplies the difference
# of two such numbers by up to 5, and 28 calls add up.
PEER_HALF_BOUND = 0.1


@contextmanager
def full_single() -> Iterator[None]:
    """Products and convolutions of fp32 with all of its bits inside: TF32, on for convolutions by default, has 10.

    The settings of before return afterwards.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@dataclass(frozen=True)
class Gate:
    """A measured error and its bound, both relative to the largest magnitude of the reference."""

    error: float
    bound: float
    what: str

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # False for NaN

    def __str__(self) -> str:
        return f"{self.what}: error {self.error:.2e}, bound {self.bound:.2e}"


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest deviation over the largest magnitude of the reference; both [...] of one shape."""
    if value.shape != reference.shape:
        raise ValueError(f"results of shape {tuple(value.shape)} and {tuple(reference.shape)} cannot be compared")
    scale = reference.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((value.double() - reference.double()).abs().max() / scale)


def peer_gate(value: Tensor, reference: Tensor, what: str) -> Gate:
    """Judge a peer's draw against the plain diffusers loop under the same rule on the same weights."""
    bound = FP32_BOUND if value.dtype == torch.float32 else PEER_HALF_BOUND
    return Gate(relative_error(value, reference), bound, what)


def gate(value: Tensor, plain: Tensor, exact: Tensor | None, what: str) -> Gate:
    """Judge ``value`` against the plain algorithm.

    In fp32 ``plain`` is the reference itself (``exact`` None); in half precision ``exact`` is the plain algorithm in fp32
    and ``value`` may err by at most twice what ``plain`` errs by.
    """
    if exact is None:
        return Gate(relative_error(value, plain), FP32_BOUND, what)
    return Gate(relative_error(value, exact), HALF_FACTOR * relative_error(plain, exact), what)
