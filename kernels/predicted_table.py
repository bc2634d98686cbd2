"""The backends that a model of a card predicts to be faster than the vendor's, and the part of the time that they save.

By architecture, operation and shape class; no card has measured them, and what one measures takes their place.  Written by
``python -m segue.bench.predicted_choice``.
"""

PREDICTED: dict[str, dict[tuple[str, str], tuple[str, float]]] = {
    "sm_90": {},
}
