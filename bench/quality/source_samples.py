"""Real samples of a training source: its test split where it has one, else every sample that it holds, once."""

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from segue.training.data.finite import FiniteSource
from segue.training.data.herbarium import Herbarium
from segue.training.data.idx_source import IdxSource
from segue.training.data.open_source import open_source

from .real_samples import RealSamples, leaves

AT_ONCE, SEED, TEST = 100, 0, "t10k"


def source_samples(
    data: str, size: int | None = None, count: int | None = None, say: Callable[[str], None] = lambda text: None
) -> RealSamples:
    """Those of what ``--data`` of ``segue train`` names; ``size`` as there.  ``count``: only so many of them.

    Raises as :func:`~segue.training.data.open_source.open_source`, and ``ValueError`` for latents and for a ``count`` that
    there is not.
    """
    source = open_source(data, size=size)
    if isinstance(source, Herbarium):
        return leaves() if count is None else leaves(count)
    if isinstance(source, IdxSource):
        source = IdxSource(Path(data), TEST, size)
    if not isinstance(source, FiniteSource) or source.shape[0] != 3:
        raise ValueError(f"{data} holds no pictures that samples could be compared with; name some by --real")
    held, finite = len(source), source
    if count is not None and not 0 < count <= held:
        raise ValueError(f"{data} holds {held} pictures, and {count} are asked for")
    wanted = held if count is None else count
    split = f" ({TEST})" if isinstance(source, IdxSource) else " (the samples that networks are trained on)"
    say(f"real samples: {wanted} of {source.name}{split}")

    def batches() -> Iterable[Tensor]:
        for index in range(-(-wanted // AT_ONCE)):
            yield finite.batch(index, AT_ONCE, SEED)[0][: wanted - index * AT_ONCE]

    return RealSamples(f"{wanted} of {source.name}{split}", wanted, source.shape, batches, source.parents)
