"""Pipelines of random weights in the layout of SD3.5-medium and DiT: `out/examples/tiny-sd3` and `out/examples/tiny-dit`.

They draw noise, and everything else about them is as it is with real weights: commands, plans, refusals, records.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "oracles"))  # the tests have such networks

from tiny_dit import tiny_dit_pipeline
from tiny_sd3 import tiny_pipeline

OUT = Path("out/examples")
CLIP_TOKENS = 77  # as CLIP takes: these tokenizers make one of every letter


def tiny_sd3() -> Path:
    """The folder of a Stable Diffusion 3.5 of 12 blocks for pictures of 64 x 64 pixels, written unless it is there."""
    if find_spec("transformers") is None:
        sys.exit("the text encoders of SD3 need transformers: pip install transformers")
    folder = OUT / "tiny-sd3"
    if not folder.exists():
        size = {"num_layers": 12, "sample_size": 32, "pos_embed_max_size": 48}
        tiny_pipeline("sd3.5-medium", **size, clip_tokens=CLIP_TOKENS).save_pretrained(folder)
    return folder


def tiny_dit() -> Path:
    """The folder of a `DiTPipeline` of 12 blocks and the 1000 classes of ImageNet, written unless it is there."""
    folder = OUT / "tiny-dit"
    if not folder.exists():
        tiny_dit_pipeline(classes=1000, layers=12).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(tiny_dit())
    print(tiny_sd3())
