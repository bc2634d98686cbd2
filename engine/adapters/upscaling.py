"""Finished pictures at a larger size: an enhancer, and the low frequencies projected back, so that reducing undoes it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.bundled import ENHANCERS
from segue.models.enhancer import Enhancer, load_enhancer
from segue.models.fingerprint import fingerprint
from segue.models.spectrum import back_projected

from ..images import check_finite

AT_ONCE = 64  # pictures: those of a large run are not held at every width of the network
KNOWN = "a factor for which the model has an enhancer, the name or file of one, or a function of pictures"


@dataclass(frozen=True, eq=False)
class Upscaler:
    """``enhancer`` maps pictures [B, C, H, W] in [-1, 1] to [B, C, f H, f W]; ``name`` finds it again, empty for a function.

    It acts once, on what a run has drawn.  Within the loop it would do nothing: what it makes reduces to what it was given.
    """

    enhancer: Callable[[Tensor], Tensor]
    name: str = ""

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, f H, f W] fp32; ``ValueError`` for what the enhancer gives of another shape or not finite.

        Its ideal low-pass, decimated, is ``pictures`` again, up to rounding.
        """
        return torch.cat([self._enlarged(part.float()) for part in pictures.split(AT_ONCE)])

    def _enlarged(self, x: Tensor) -> Tensor:
        if isinstance(self.enhancer, nn.Module):
            self.enhancer.to(x.device)
        check_finite(x)
        y = self.enhancer(x)
        count, channels, height, width = x.shape
        factor = y.shape[-1] // width if isinstance(y, Tensor) and y.dim() == 4 else 0
        if factor < 1 or y.shape != (count, channels, factor * height, factor * width):
            given = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"an enhancer enlarges pictures {list(x.shape)} by a whole factor, got {given}")
        if not torch.isfinite(y).all():
            raise ValueError(f"the enhancer {self.name or self.enhancer!r} gave pictures that are not finite")
        return back_projected(y.float(), x)

    @property
    def factor(self) -> int:
        """How many times as wide pictures become; of a function not known before."""
        return self.enhancer.spec.factor if isinstance(self.enhancer, Enhancer) else 0

    @cached_property
    def weights(self) -> str:
        """The fingerprint of the enhancer's weights; empty for a function."""
        return fingerprint({"enhancer": self.enhancer}) if isinstance(self.enhancer, Enhancer) else ""

    def __str__(self) -> str:
        return f"{self.factor}x by {self.name}" if self.factor else "by a function"


def upscaler_of(upscale: Any, model: str | None, channels: int, pixels: bool = True) -> Upscaler | None:
    """What ``upscale`` means for a model of ``channels``: a factor, a name, a file, a function, an :class:`Upscaler` or None.

    ``model`` is the bundled model by name, if it is one; ``pixels``: whether its latents are pixels.  Raises ``TypeError`` or
    ``ValueError``.
    """
    if upscale is None:
        return None
    if not pixels:
        raise ValueError(f"upscale={upscale!r} enlarges pixels, and the model draws latents that a VAE decodes")
    made = upscale if isinstance(upscale, Upscaler) else _made(upscale, model)
    if isinstance(made.enhancer, Enhancer) and made.enhancer.spec.channels != channels:
        raise ValueError(
            f"{made.name} enlarges pictures of {made.enhancer.spec.channels} channels, and the model draws {channels}"
        )
    return made


def _made(upscale: Any, model: str | None) -> Upscaler:
    if isinstance(upscale, bool) or not (isinstance(upscale, int | str | Path) or callable(upscale)):
        raise TypeError(f"upscale must be {KNOWN}; got {upscale!r}")
    if isinstance(upscale, int) or (isinstance(upscale, str) and upscale.isdecimal()):
        for name, drawn_by in ENHANCERS.items():
            if drawn_by == model:
                enhancer = load_enhancer(name)
                if enhancer.spec.factor == int(upscale):
                    return Upscaler(enhancer, name)
                raise ValueError(f"{model} has an enhancer by the factor {enhancer.spec.factor}, got upscale={upscale}")
        raise ValueError(f"upscale={upscale}: {model or 'the model'} has no enhancer of its own; give the file of one")
    if isinstance(upscale, str | Path):
        return Upscaler(load_enhancer(upscale), str(upscale))
    return Upscaler(upscale)
