"""Scores of pictures that exist, as rows beside those of rules: the variant is the name of their file or folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..rows import Environment, Row, append_rows, check_writable
from ..scores.intervals import SETS
from ..scores.judge import Judge
from .judges import check_judge
from .real_samples import RealSamples
from .rows import RowForm, check_names, chosen, held_rows, key_of
from .saved_pictures import SavedPictures
from .tables import summary


def score_saved(
    saved: SavedPictures,
    judges: Sequence[Judge],
    real: RealSamples,
    environment: Environment,
    path: Path,
    echo: Callable[[str], None] = print,
) -> list[Row]:
    """The rows of saved pictures by ``judges``, old and new; what the file ``path`` holds is not scored again.

    Raises ``ValueError`` for judges that do not take them or lack a class of theirs, and for real samples that are fewer or of
    another size.
    """
    check_writable(path)
    check_names(judges)
    real.check(saved.count, saved.size)
    if saved.count < 2 * SETS:
        raise ValueError(f"scores need at least {2 * SETS} pictures, got {saved.count}")
    for judge in judges:
        classes = check_judge(judge, saved.size)
        if classes is not None and saved.labels and not 0 <= min(saved.labels) <= max(saved.labels) < classes:
            raise ValueError(f"{judge.name} tells {classes} classes apart, and a picture is of class {max(saved.labels)}")
    labels = None if saved.labels is None else torch.tensor(saved.labels)
    case, parents = f"{saved.count} saved pictures, beside {real.name}", real.parents if labels is not None else ()
    form = RowForm(environment, case, "float32", parents, labels is not None)
    kept, variant = held_rows(path), saved.name
    for judge in judges:
        if not kept.keys() >= set(form.keys(variant, judge)):
            rows = form.judged(variant, judge, judge.view(saved), labels, real.features(judge))
            append_rows(path, rows)
            kept |= {key_of(row): row for row in rows}
            for line in summary(rows):
                echo(line)
    return chosen(kept, [key for judge in judges for key in form.keys(variant, judge)])
