"""``python -m segue.bench.predicted_choice``: where the model of a card expects a kernel of this project to beat the vendor's.

It writes ``kernels/predicted_table.py``, by which ``auto`` chooses until a card has measured.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segue.engine.files import whole_file
from segue.kernels import predicted_table
from segue.kernels.agenda import Choice, choices, value
from segue.kernels.catalogue import Case, Factory
from segue.kernels.dispatch import LIBRARY, OPERATIONS, Selection, Shapes, select_kernels
from segue.kernels.launch_table import PREFERRED
from segue.kernels.predicted_table import PREDICTED
from segue.kernels.shares import share
from segue.kernels.triton_runtime import trace_launches

from .cards import CARDS, Card
from .census import CUDA, META, recorded_kernels
from .predict import kernel_seconds

LEAST_GAIN = 0.1  # below it the model is not trusted: what it chose first made steps 8 % longer
TABLE_FILE = Path(predicted_table.__file__)
LINE = '        ("{}", "{}"): ("{}", {:.3f}),\n'


def predicted_choices(architecture: str) -> dict[tuple[str, str], tuple[str, float]]:
    """By operation and shape class: our backend, and the least part of the time that it saves on a known card.

    The operations that a reference is made of come before it: it is judged with what was chosen for them.
    """
    cards = [card for card in CARDS.values() if card.chip.architecture == architecture]
    with _nothing_measured(architecture) as found:
        for choice in sorted(choices(architecture), key=lambda choice: OPERATIONS.index(choice.operation)):
            if choice.operation in LIBRARY and not choice.cases[0].vendor:
                gain = min(_gain(choice, card) for card in cards)
                if gain >= LEAST_GAIN:
                    found[choice.operation, choice.shape_class] = "triton", round(gain, 3)
    return found


@contextmanager
def _nothing_measured(architecture: str) -> Iterator[dict[tuple[str, str], tuple[str, float]]]:
    """Inside, no choice was measured for an architecture, and the predictions are those of the mapping that is given."""
    kept: list[tuple[dict, Any]] = [(table, table.pop(architecture, None)) for table in (PREFERRED, PREDICTED)]
    try:
        yield PREDICTED.setdefault(architecture, {})
    finally:
        for table, found in kept:
            table.pop(architecture, None)
            if found is not None:
                table[architecture] = found


def _gain(choice: Choice, card: Card) -> float:
    """The part of the default's time that our kernel saves, over the cases of a class by their share of all runs."""
    saved = 0.0
    for case in choice.cases:
        default, own = (_seconds(case, kernel, card) for kernel in ("auto", "triton"))
        saved += share(case) * (1 - own / default)
    return saved / value(choice.cases)


def _seconds(case: Case, backend: str, card: Card) -> float:
    """What a case takes by one backend of its operation, whatever is chosen for others."""
    with trace_launches(card.chip):
        size = Shapes(case.size.head_dim, case.size.width, case.size.outputs)
        selection: Selection = select_kernels(CUDA, case.dtype, size, overrides={case.operation: backend})
    function: Callable = case.complete(getattr(selection.kernels, case.operation))
    arguments = case.arguments(Factory(META, case.dtype))
    return sum(kernel_seconds(kernel, card) for kernel in recorded_kernels(lambda: function(*arguments), card.chip))


def table_source() -> str:
    """The source of ``kernels/predicted_table.py`` as this model fills it."""
    head, _, _ = TABLE_FILE.read_text(encoding="utf-8").partition("PREDICTED: ")
    return head + "".join(_lines())


def _lines() -> Iterator[str]:
    yield "PREDICTED: dict[str, dict[tuple[str, str], tuple[str, float]]] = {\n"
    for architecture in sorted({card.chip.architecture for card in CARDS.values()}):
        lines = [
            LINE.format(operation, shape_class, backend, gain)
            for (operation, shape_class), (backend, gain) in sorted(predicted_choices(architecture).items())
        ]
        yield f'    "{architecture}": {{' + "".join(["\n", *lines, "    "] if lines else []) + "},\n"
    yield "}\n"


def main() -> None:
    """Write the table, whole or not at all."""
    source = table_source()
    with whole_file(TABLE_FILE) as part:
        part.write_text(source, encoding="utf-8")
    print(source.partition("PREDICTED: ")[2], end="")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
