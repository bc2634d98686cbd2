"""How many rows stand for so many: the few sizes that forwards are captured for, or every number where none is."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..numeric_input import counting_number

SIZES = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows in rising order; between two of them rows are padded."""

    sizes: tuple[int, ...] = SIZES

    def __post_init__(self):
        checked = tuple(counting_number(size, "a number of rows") for size in self.sizes)
        if not checked or list(checked) != sorted(set(checked)):
            raise ValueError(f"sizes must rise, as {', '.join(map(str, SIZES))} do, got {self.sizes!r}")
        object.__setattr__(self, "sizes", checked)

    @classmethod
    def of(cls, sizes: "Sequence[int] | None", captured: bool) -> "Sizes":
        """The sizes that a caller asks for; None: the usual ones, and where no forward is captured every number.

        Sizes bound how many forwards are captured.  Where none is, a padded row costs what any other does and saves nothing.
        """
        if sizes is not None:
            return cls(tuple(sizes))
        return cls() if captured else cls(tuple(range(1, SIZES[-1] + 1)))

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    @property
    def rows(self) -> int:
        """Of one network in one forward, at most: of several groups together."""
        return 2 * self.largest

    def padded(self, count: int) -> int:
        """The smallest size that holds ``count`` rows.  Raises ``ValueError`` for more than the largest one holds."""
        for size in self.sizes:
            if count <= size:
                return size
        raise ValueError(f"{count} rows are more than the largest size, {self.largest}")
