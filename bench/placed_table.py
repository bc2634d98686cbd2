"""Which launch table the kernels read in each part of a visit, said whenever that changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .tuned_table import install, refusal, restore

OWN = "the kernels read the tree's own launch table"


@dataclass
class PlacedTable:
    """``tuned``, the table of the visit's folder, in the place of ``installed``, the tree's own, and that one back again.

    Where the tree cannot be written one line says why, and what follows is measured with the table that is there; rows tell it
    by its digest.
    """

    tuned: Path
    installed: Path
    said: str = OWN

    def place_own(self) -> None:
        """The tree's own table, whatever an earlier visit left there."""
        self._say(self._own())

    def place_tuned(self, here: Mapping[str, str], there: Mapping[str, str] | None) -> bool:
        """The tuned table if there is one and what it was tuned for, ``there``, is this machine, ``here``; else the own one.

        Returns whether the tuned table is in place.
        """
        self._say(self._tuned(here, there) if self.tuned.exists() else self._own())
        return self.said == self._used

    def _own(self) -> str:
        try:
            restore(self.installed)
        except OSError as error:
            return f"{self.installed}: the tree's own launch table cannot be put back: {error}"
        return OWN

    def _tuned(self, here: Mapping[str, str], there: Mapping[str, str] | None) -> str:
        if reason := refusal(self.tuned, here, there):
            return f"{self.tuned}: not used, {reason}; {self._own()}"
        try:
            install(self.tuned, self.installed)
        except OSError as error:
            return f"{self.tuned}: not used, it cannot be put in place: {error}; {self._own()}"
        return self._used

    @property
    def _used(self) -> str:
        return f"{self.tuned}: used"

    def _say(self, text: str) -> None:
        if text != self.said:
            print(text, flush=True)
        self.said = text
