"""Real samples that drawn ones are compared with: leaves of the herbarium, as many as are asked for, or pictures of a file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from segue.models.spec import SiTSpec
from segue.training.data.herbarium import Herbarium
from segue.training.data.leaves import SIZE, draw_leaves
from segue.training.data.species import NUM_SPECIES, PARENTS, SPECIES
from segue.training.streams import stream_generator

from ..scores.extractors import features_of
from ..scores.judge import Judge
from .saved_pictures import SavedPictures

HERBARIUM = "herbarium"
LEAVES, LEAVES_AT_ONCE = 10_000, 500
LEAVES_SEED, FRESH_SEED = 40_009, 40_013  # streams of leaves that no network was trained on


@dataclass(frozen=True, eq=False)
class RealSamples:
    """``count`` pictures of ``size`` (C, H, W) under a ``name`` that rows carry; ``batches()`` gives them anew, in [-1, 1].

    ``parents`` are the superclasses of their classes, where these are known.  ``fresh`` draws others, of the labels [B] that it
    is given, where more can be had: what these score is what no rule can be expected to pass.
    """

    name: str
    count: int
    size: tuple[int, int, int]
    batches: Callable[[], Iterable[Tensor]]
    parents: tuple[int, ...] = ()
    fresh: Callable[[Tensor], Tensor] | None = None
    _features: dict[str, Tensor] = field(default_factory=dict)

    def check(self, samples: int, size: tuple[int, int, int]) -> None:
        """Raise ``ValueError`` unless there are as many as ``samples``, as neighbours are counted, of the same ``size``."""
        if self.count < samples:
            raise ValueError(f"{samples} samples need as many real ones beside them, got {self.count}")
        if self.size != size:
            drawn, real = ("x".join(map(str, each)) for each in (size, self.size))
            raise ValueError(f"samples of {drawn} need real ones of that size beside them, got {real}")

    def features(self, judge: Judge) -> Tensor:
        """Their features [count, F] by a judge, found once."""
        if judge.name not in self._features:
            self._features[judge.name] = features_of(self.batches(), judge.features)
        return self._features[judge.name]


def leaves(count: int = LEAVES) -> RealSamples:
    """New leaves of all species.  Raises ``ValueError`` for a number that is none."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"the number of real samples must be a positive whole number, got {count!r}")

    def batches() -> Iterable[Tensor]:
        for index, first in enumerate(range(0, count, LEAVES_AT_ONCE)):
            yield Herbarium().batch(index, LEAVES_AT_ONCE, LEAVES_SEED)[0][: count - first]

    return RealSamples(f"{count} leaves of {NUM_SPECIES} species", count, (3, SIZE, SIZE), batches, PARENTS, fresh_leaves)


def fresh_leaves(labels: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
    """New leaves [B, 3, 32, 32] of species [B], which are none of :func:`leaves`: those ``numbers``, by default 0, 1, ..."""
    every = zip(labels, range(len(labels)) if numbers is None else numbers, strict=True)
    return torch.cat([draw_leaves(label[None], stream_generator(FRESH_SEED, number)) for label, number in every])


def real_samples(choice: str | None, count: int | None, spec: SiTSpec | None) -> RealSamples:
    """What ``choice`` names: the herbarium (the default for its own models), an .npz file or a folder of pictures."""
    if choice is None and spec is not None and tuple(spec.class_names) != SPECIES:
        raise ValueError(f"{spec.name} draws no leaves of the herbarium: name real samples by --real FILE.npz or FOLDER")
    if choice in (None, HERBARIUM):
        return leaves(LEAVES if count is None else count)
    saved = SavedPictures.open(Path(choice))
    if count is not None and not 0 < count <= saved.count:
        raise ValueError(f"{choice} holds {saved.count} pictures, and {count} are asked for")
    chosen = saved if count is None else saved.first(count)
    return RealSamples(f"{chosen.count} of {chosen.name}", chosen.count, chosen.size, chosen.__iter__)
