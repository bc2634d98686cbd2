"""The checkpoints that ship with the package; their model card lies beside them."""

from pathlib import Path

# network name -> file, per bundled model; "main" samples, the others guide
BUNDLED = {"herbarium": {"main": "herbarium.safetensors", "weak": "herbarium-weak.safetensors"}}


def bundled_files(name: str) -> dict[str, Path]:
    """Files of a bundled model by network name.

    Raises ``ValueError`` for an unknown name and ``FileNotFoundError`` if the installation lacks a file.
    """
    if name not in BUNDLED:
        raise ValueError(f"no bundled model is named {name!r}; there is: {', '.join(BUNDLED)}")
    files = {network: Path(__file__).parent / file for network, file in BUNDLED[name].items()}
    for path in files.values():
        if not path.is_file():
            raise FileNotFoundError(f"the bundled checkpoint {path.name} is missing from this installation ({path.parent})")
    return files
