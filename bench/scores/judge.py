"""A judge: an extractor with a name, perhaps with a classifier, and every score that it gives to one set of samples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .accuracy import Confusion
from .extractors import Extractor, features_of
from .features import check_pair
from .frechet import Moments, frechet_distance
from .inception import inception_score
from .intervals import LEVEL, Interval, interval_by_sets
from .kernel_distance import kernel_distance
from .neighbours import neighbours
from .units import ACCURACY, FRECHET, INCEPTION, KERNEL, NEIGHBOURS, SUPERCLASS

Pictures = Tensor | Iterable[Tensor]


@dataclass(frozen=True)
class Judge:
    """``name`` says which weights judge: rows of one name must be comparable.  ``logits`` are [B, classes], if there are."""

    name: str
    features: Extractor
    logits: Extractor | None = None

    def metrics(self, parents: Sequence[int] = (), labelled: bool = True) -> tuple[str, ...]:
        """What :meth:`View.scores` gives, in order."""
        by_label = (ACCURACY, *((SUPERCLASS,) if parents else ())) if labelled else ()
        by_class = (*by_label, INCEPTION) if self.logits else ()
        return (*by_class, FRECHET, KERNEL, *NEIGHBOURS)

    def view(self, pictures: Pictures) -> "View":
        """What the judge sees of pictures [N, C, H, W], or of batches of them, which are gone through twice."""
        return View(features_of(pictures, self.features), features_of(pictures, self.logits) if self.logits else None)

    def scores(
        self, pictures: Pictures, labels: Tensor | None, reference: Tensor, parents: Sequence[int] = (), level: float = LEVEL
    ) -> dict[str, Interval]:
        """Every score of pictures [N, C, H, W] for labels [N] against the features [M, F] of real ones, with its interval."""
        return self.view(pictures).scores(labels, reference, parents, level)


@dataclass(frozen=True, eq=False)
class View:
    """Features [N, F] and logits [N, classes], if there are, of N pictures."""

    features: Tensor
    logits: Tensor | None

    def confusion(self, labels: Tensor | None) -> Confusion | None:
        """What was taken for what; None where there are no logits or no labels."""
        return None if self.logits is None or labels is None else Confusion.of(self.logits, labels)

    def scores(
        self, labels: Tensor | None, reference: Tensor, parents: Sequence[int] = (), level: float = LEVEL
    ) -> dict[str, Interval]:
        """Every score for labels [N], if they are known, against the features [M, F] of real pictures."""
        found: dict[str, Interval] = {}
        if confusion := self.confusion(labels):
            found[ACCURACY] = confusion.accuracy(level)
            if parents:
                found[SUPERCLASS] = confusion.by_superclass(parents).accuracy(level)
        if self.logits is not None:
            found[INCEPTION] = interval_by_sets(inception_score, self.logits, level=level)
        features, real = check_pair(self.features, reference)
        return found | distance_scores(features, real, level)


def distance_scores(features: Tensor, real: Tensor, level: float = LEVEL) -> dict[str, Interval]:
    """The scores of features [N, F] that compare them with those of real samples, [M, F], M >= N.

    The Frechet distance sees all real ones; the others as many as there are samples, on whose count neighbours depend.
    """
    if len(real) < len(features):
        raise ValueError(f"{len(features)} samples need as many real ones beside them, got {len(real)}")
    moments, width, beside = Moments.of(real), features.shape[1], real[: len(features)]
    scores: dict[str, Callable[[Tensor], float]] = {
        FRECHET: lambda part: frechet_distance(Moments.of(part), moments) / width,
        KERNEL: lambda part: kernel_distance(part, beside),
    }
    found = {name: interval_by_sets(score, features, level=level) for name, score in scores.items()}
    return found | neighbours(features, beside).intervals(level)
