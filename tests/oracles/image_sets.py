"""Small data sets on disk for tests: images of noise by name, and moments in REPA's layout."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root: Path, names, size=(11, 7), seed: int = 0) -> dict[str, np.ndarray]:
    """PNG files of noise [H, W, 3] under ``root`` by name, of ``size`` (width, height); returns their pixels."""
    random, pixels = np.random.default_rng(seed), {}
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels[name] = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels[name]).save(path)
    return pixels


def write_latents(root: Path, labels, shape=(8, 5, 3), seed: int = 0, **keys) -> dict[str, np.ndarray]:
    """Moments [2 C, H, W] by name in ``root``, ``labels`` by name in its dataset.json; returns the moments."""
    random, moments = np.random.default_rng(seed), {}
    for name in labels:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        moments[name] = random.standard_normal(shape).astype(np.float32)
        moments[name][shape[0] // 2 :] = np.abs(moments[name][shape[0] // 2 :])
        np.save(path, moments[name])
    (root / "dataset.json").write_text(json.dumps({"labels": list(labels.items()), **keys}))
    return moments
