"""Projectors of REPA (arXiv 2410.06940): from tokens of a SiT to features of another encoder, for training alone."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from .sit import Pass, SiT
from .spec import SiTSpec, positive_integer

PREFIX = "projectors."  # of their tensors in REPA's checkpoints
TRAINING_ONLY = "used in training only"


def projector_keys(tensors: Iterable[str]) -> list[str]:
    """The keys that belong to projectors, which sampling does not need."""
    return [key for key in tensors if key.startswith(PREFIX)]


class SiTWithProjectors(SiT):
    """A SiT with one perceptron of three layers per encoder, under REPA's names ``projectors.N.{0,2,4}``.

    They read the state after ``layer`` blocks (1 to depth) and run where a :class:`~segue.models.sit.Pass` is asked for, so
    never in sampling.  ``dims``: the width Z of the features of each encoder; ``width``: that between the layers.
    """

    def __init__(self, spec: SiTSpec, layer: int, dims: Sequence[int], width: int):
        super().__init__(spec)
        if not 1 <= layer <= spec.depth:
            raise ValueError(f"projectors must read after block 1 to {spec.depth}, got {layer}")
        if not dims:
            raise ValueError("projectors need the width of the features of at least one encoder, got none")
        width, dims = positive_integer("width", width), [positive_integer("dims", dim) for dim in dims]
        self.projected = layer
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(spec.dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim))
            for dim in dims
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        labels: Tensor,
        exits: bool = False,
        states: Sequence[int] | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]] | Pass:
        """As :meth:`SiT.forward`; a :class:`~segue.models.sit.Pass` has the ``projections`` too."""
        if states is None:
            return super().forward(x, time, labels, exits, embedding=embedding)
        found = self.full_pass(x, time, labels, exits, (*states, self.projected), embedding)
        return found._replace(projections=tuple(projector(found.states[self.projected]) for projector in self.projectors))
