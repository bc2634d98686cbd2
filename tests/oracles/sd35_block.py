"""One joint block of SD3.5-medium at true width on weights made of integers, and a digest of what it computes.

``python tests/oracles/sd35_block.py`` prints tests/models/sd35_block.json: the digest of diffusers' own block in fp64.
"""

import json
import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.kernels.philox import random_words
from segue.kernels.record import Kernels
from segue.models.mmdit import JointBlock
from segue.models.mmdit_diffusers import diffusers_sources
from segue.models.mmdit_spec import MMDiTSpec

STORED = Path(__file__).parents[1] / "models" / "sd35_block.json"
ROWS, IMAGE, TEXT, WIDTH, HEADS = 2, 9, 5, 1536, 24
CHUNKS = 15  # modulation vectors: nine of the image, six of the text
OUTLIERS = ((7, 30), (768, 100), (1530, 60))  # channels of the hidden state, and how much larger they are
PERIOD = 1048573  # a prime, so that no two rows of a weight begin at the same number
DIRECTIONS = 8


class Numbers:
    """Uniform numbers in (-1, 1) from Philox words by a shift and a scale: the same bits everywhere.  Repeats ``PERIOD``."""

    def __init__(self, seed: int):
        words = random_words(torch.tensor([seed]), torch.tensor([0]), PERIOD)[0]
        self._table = ((words >> 9).double() + 0.5) * 2.0**-22 - 1
        self._next = 0

    def draw(self, *shape: int) -> Tensor:
        """The next numbers [...] fp64."""
        count = math.prod(shape)
        start, self._next = self._next, (self._next + count) % PERIOD
        return self._table.repeat(-(-(start + count) // PERIOD))[start : start + count].view(shape)


@dataclass(frozen=True)
class Operands:
    """Image [R, L, D] with outlier channels, text [R, M, D], modulation [R, 15 D]; bf16, so every precision has the same."""

    image: Tensor
    text: Tensor
    modulation: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "Operands":
        """Copies in another precision: a block may write into them."""
        return Operands(*(x.to(device, dtype, copy=True) for x in (self.image, self.text, self.modulation)))


def operands() -> Operands:
    numbers = Numbers(1)
    image, text = numbers.draw(ROWS, IMAGE, WIDTH), numbers.draw(ROWS, TEXT, WIDTH)
    for channel, factor in OUTLIERS:
        image[..., channel] *= factor
    return Operands(*(x.bfloat16() for x in (image, text, numbers.draw(ROWS, CHUNKS * WIDTH) / 2)))


@cache
def weights() -> dict[str, Tensor]:
    """Every tensor of the block but the modulation's layers, by the names of ``JointBlock``, bf16."""
    numbers, made = Numbers(2), {}
    for name, tensor in empty_block().state_dict().items():
        if "adaLN" not in name:
            x = numbers.draw(*tensor.shape)
            if name.endswith(("ln_q.weight", "ln_k.weight")):
                x = 1 + x / 2
            else:
                x = x * (3 / tensor.shape[-1]) ** 0.5 if tensor.dim() > 1 else x / 4
            made[name] = x.bfloat16()
    return made


def empty_block() -> JointBlock:
    """The block on ``meta``: shapes alone."""
    sizes = {"channels": 16, "height": 128, "width": 128, "patch": 2, "dim": WIDTH, "depth": 2, "heads": HEADS}
    with torch.device("meta"):
        return JointBlock(MMDiTSpec(name="block", qk_norm=True, dual_layers=(0,), **sizes), 0)


def our_block(dtype: torch.dtype, device: torch.device | str = "cpu") -> JointBlock:
    """The block of :class:`MMDiT` on those weights; its modulation's layers are left on ``meta``."""
    block = empty_block()
    made = {name: tensor.to(device, dtype) for name, tensor in weights().items()}
    missing, unexpected = block.load_state_dict(made, strict=False, assign=True)
    if unexpected or any("adaLN" not in name for name in missing):
        raise ValueError(f"the block has other tensors: {missing}, {unexpected}")
    return block.requires_grad_(False)


@torch.no_grad()
def ours(block: JointBlock, kernels: Kernels, given: Operands) -> tuple[Tensor, Tensor]:
    """(image, text) after the block; ``given`` is written into."""
    return block(given.image, given.text, given.modulation, kernels)


class Given(nn.Module):
    """In the place of the linear layer that would make modulation vectors."""

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.vectors = vectors

    def forward(self, _: Tensor) -> Tensor:
        return self.vectors


@torch.no_grad()
def theirs() -> tuple[Tensor, Tensor]:
    """(image, text) by diffusers' ``JointTransformerBlock`` in fp64."""
    from diffusers.models.attention import JointTransformerBlock

    with torch.device("meta"):
        block = JointTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, qk_norm="rms_norm", use_dual_attention=True)
    state = {}
    for name, tensor in weights().items():
        sources = diffusers_sources(f"joint_blocks.0.{name}")
        parts = zip(sources, tensor.double().chunk(len(sources)), strict=True)
        state |= {source.removeprefix("transformer_blocks.0."): part for source, part in parts}
    given = operands().to(torch.float64)
    image, text = given.modulation.split([9 * WIDTH, 6 * WIDTH], dim=-1)
    block.norm1.linear, block.norm1_context.linear = Given(image), Given(text)
    for attention in (block.attn, block.attn2):  # diffusers' own RMSNorm computes in fp32
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            if getattr(attention, name, None) is not None:
                setattr(attention, name, nn.RMSNorm(WIDTH // HEADS, eps=1e-6))
    missing, unexpected = block.load_state_dict(state, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(f"diffusers' block has other tensors: {missing}, {unexpected}")
    text, image = block(given.image, given.text, torch.zeros(ROWS, WIDTH, dtype=torch.float64))
    return image, text


def digest(image: Tensor, text: Tensor) -> dict[str, list[float]]:
    """Of each stream: the root mean square of every token, and projections on directions of random signs.

    A projection is divided by the root of its length: it errs as the elements do, if those err independently.
    """
    numbers, found = Numbers(3), {}
    for name, x in (("image", image.double().cpu()), ("text", text.double().cpu())):
        signs = numbers.draw(DIRECTIONS, x.numel()).sign()
        found[f"{name} root mean squares"] = x.square().mean(-1).sqrt().flatten().tolist()
        found[f"{name} projections"] = (signs @ x.flatten() / x.numel() ** 0.5).tolist()
    return found


def deviation(found: dict[str, list[float]], stored: dict[str, list[float]] | None = None) -> float:
    """The largest difference from the stored digest, relative to the root mean square of its projections or tokens."""
    stored = stored or json.loads(STORED.read_text())["digest"]
    worst = 0.0
    for name, numbers in stored.items():
        expected, mine = torch.tensor([numbers, found[name]], dtype=torch.float64)
        worst = max(worst, float((mine - expected).abs().max() / expected.square().mean().sqrt()))
    return worst


def main() -> None:
    """Print the digest of diffusers' block, with what it was made by."""
    import diffusers

    made = f"python tests/oracles/{Path(__file__).name}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    json.dump({"made by": made, "digest": digest(*theirs())}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
