"""The checkpoints that ship with the package; their model card lies beside them.

What was made for a model (its weak sibling, the classifiers that chose its numbers) names the digest of the model's file in its
header and is refused beside another.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

# network name -> file, per bundled model; "main" samples, the others guide
BUNDLED = {"herbarium": {"main": "herbarium.safetensors", "weak": "herbarium-weak.safetensors"}}
# the classifiers, each with the model whose pictures it sees
CLASSIFIERS = {"herbarium-classifier": "herbarium", "herbarium-judge": "herbarium"}
# networks that make pictures larger, each with the model whose pictures it was made for
ENHANCERS = {"herbarium-enhancer": "herbarium"}
# adapters by the model whose weights they change, and by name
ADAPTERS = {"herbarium": {"sgg": "herbarium-sgg.safetensors"}}
# calibrations of rules, by name, each with the model whose networks it was measured on
CALIBRATIONS = {"sgg": "herbarium"}
PARENT_KEY = "parent"  # of a file's header: the digest of the model that it was made for


def bundled_files(name: str) -> dict[str, Path]:
    """Files of a bundled model by network name.

    Raises ``ValueError`` for an unknown name or a file that was made for another model, and ``FileNotFoundError`` if the
    installation lacks a file.
    """
    if name not in BUNDLED:
        raise ValueError(f"no bundled model is named {name!r}; there is: {', '.join(BUNDLED)}")
    files = {network: _present(file) for network, file in BUNDLED[name].items()}
    for network, path in files.items():
        if network != "main":
            _check_parent(path, files["main"])
    return files


def classifier_file(name: str) -> Path:
    """The file of a bundled classifier; raises as :func:`bundled_files` does."""
    if name not in CLASSIFIERS:
        raise ValueError(f"no bundled classifier is named {name!r}; there are: {', '.join(CLASSIFIERS)}")
    path = _present(f"{name}.safetensors")
    _check_parent(path, bundled_files(CLASSIFIERS[name])["main"])
    return path


def enhancer_file(name: str) -> Path:
    """The file of a bundled enhancer; raises as :func:`bundled_files` does."""
    if name not in ENHANCERS:
        raise ValueError(f"no bundled enhancer is named {name!r}; there is: {', '.join(ENHANCERS)}")
    path = _present(f"{name}.safetensors")
    _check_parent(path, bundled_files(ENHANCERS[name])["main"])
    return path


def adapter_file(model: str, name: str) -> Path:
    """The file of a bundled model's adapter; raises as :func:`bundled_files` does."""
    if name not in ADAPTERS.get(model, {}):
        known = ", ".join(ADAPTERS.get(model, {})) or "none"
        raise ValueError(f"no adapter of {model} is named {name!r}; there is: {known}")
    path = _present(ADAPTERS[model][name])
    _check_parent(path, bundled_files(model)["main"])
    return path


def calibration_names() -> tuple[str, ...]:
    """The names of the calibrations that ship with a model."""
    return tuple(CALIBRATIONS)


def calibration_file(name: str | Path) -> Path:
    """The file of a bundled calibration; ``FileNotFoundError`` if the installation lacks it."""
    return _present(f"{CALIBRATIONS[str(name)]}-{name}.calibration.json")


def digest(path: Path) -> str:
    """What a derived file calls its parent: the first 16 hexadecimal digits of the SHA-256 of the file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def check_parent(parent: str | None, name: str, path: Path) -> None:
    """Raise ``ValueError`` unless ``parent``, which the derived file ``name`` states, is the digest of the file ``path``."""
    if parent != digest(path):
        stated = f"for a model with digest {parent}" if parent else "for no model that it names"
        raise ValueError(f"{name} was made {stated}, but {path.name} has digest {digest(path)}; make it again for that model")


def _check_parent(path: Path, main: Path) -> None:
    check_parent(_header(path).get(PARENT_KEY), path.name, main)


def _header(path: Path) -> Mapping[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _present(file: str) -> Path:
    path = Path(__file__).parent / file
    if not path.is_file():
        raise FileNotFoundError(f"the bundled checkpoint {file} is missing from this installation ({path.parent})")
    return path
