"""Residuals that wait: what a block adds to its rows is added by the norm that reads those rows next, in the same kernel."""

from dataclasses import dataclass, field

from torch import Tensor

from segue.kernels.record import Kernels


@dataclass(frozen=True, eq=False)
class Residual:
    """What is yet to be added to a state [R, L, D]: ``gate * (y + bias)``.  y [R, L, D]; gate [R, 1, D]; bias [D] or None."""

    y: Tensor
    gate: Tensor
    bias: Tensor | None = None


def settled(h: Tensor, residual: Residual | None, kernels: Kernels) -> Tensor:
    """The state with its residual added: in place, unless ``kernels`` are the differentiable ones."""
    return h if residual is None else kernels.gated_residual(h, residual.y, residual.gate, residual.bias)


@dataclass
class Carry:
    """The residual that a range of rows waits for: a block takes the one before it and leaves its own."""

    residual: Residual | None = None

    @staticmethod
    def taken(carry: "Carry | None") -> Residual | None:
        """What waits before a block; nothing where nobody carries."""
        if carry is None:
            return None
        residual, carry.residual = carry.residual, None
        return residual

    @staticmethod
    def left(h: Tensor, residual: Residual | None, carry: "Carry | None", kernels: Kernels) -> Tensor:
        """The state after a block: with its last residual, or waiting for it where somebody carries."""
        if carry is None:
            return settled(h, residual, kernels)
        carry.residual = residual
        return h


@dataclass(eq=False)
class RowCarries:
    """The carries of ranges of the rows of one stream, ``state`` [R, L, D]."""

    state: Tensor
    kernels: Kernels
    _carries: dict[tuple[int, int], Carry] = field(default_factory=dict)

    def at(self, rows: slice) -> Carry:
        """The carry of exactly these rows; what waits for another range that overlaps them is added now."""
        for start, stop in list(self._carries):
            if (start, stop) != (rows.start, rows.stop) and start < rows.stop and rows.start < stop:
                self._settle(start, stop)
        return self._carries.setdefault((rows.start, rows.stop), Carry())

    def settle(self) -> None:
        """Add everything that waits."""
        for start, stop in list(self._carries):
            self._settle(start, stop)

    def _settle(self, start: int, stop: int) -> None:
        settled(self.state[start:stop], self._carries.pop((start, stop)).residual, self.kernels)
