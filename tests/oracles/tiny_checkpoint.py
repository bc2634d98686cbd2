"""A random network in a file, as the command line meets it: named and shaped like the bundled one, but tiny."""

from pathlib import Path

from tiny_models import tiny_sit

from segue.models.weights import save_model

NAMES = ("Acerites alba", "Acerites crispa", "Betulina alba", "Betulina crispa", "Cordatia alba")


def save_tiny(path: Path, seed: int = 0, **changes) -> Path:
    """Five classes in three superclasses, 8 x 12 RGB, 12 layers with an early exit after 4; returns ``path``."""
    settings = {
        "name": "herbarium",
        "channels": 3,
        "height": 8,
        "width": 12,
        "patch": 4,
        "dim": 16,
        "depth": 12,
        "exits": (4,),
        "num_classes": 5,
        "parents": (0, 0, 1, 1, 2),
        "class_names": NAMES,
    }
    save_model(tiny_sit(seed, **(settings | changes)), path)
    return path
