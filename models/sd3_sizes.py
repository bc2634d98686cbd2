"""Published sizes of SD3 and SD3.5, known without their weights.

Source: the configurations of Stability's diffusers releases of SD3-medium, SD3.5-medium and SD3.5-large.
"""

from .mmdit_spec import MMDiTSpec
from .sizes import VAE_FACTOR
from .spec import positive_integer

HEAD_DIM = 64
SD3_SIZES = {  # depth, width, blocks with dual attention (the first ones), QK norm, side of the position table
    "sd3-medium": (24, 1536, 0, False, 192),
    "sd3.5-medium": (24, 1536, 13, True, 384),
    "sd3.5-large": (38, 2432, 0, True, 192),
}


def sd3_spec(size: str, image_size: int = 1024) -> MMDiTSpec:
    """The spec of a published SD3, as in ``sd3_spec("sd3.5-medium")``; ``image_size`` in pixels, a multiple of 16."""
    if size not in SD3_SIZES:
        raise ValueError(f"unknown size {size!r}; known: {', '.join(SD3_SIZES)}")
    depth, dim, dual, qk_norm, position_size = SD3_SIZES[size]
    image_size = positive_integer("image_size", image_size)
    if image_size % (2 * VAE_FACTOR):
        raise ValueError(f"image_size must be a positive multiple of {2 * VAE_FACTOR}, got {image_size!r}")
    return MMDiTSpec(
        name=f"{size}-{image_size}",
        channels=16,
        height=image_size // VAE_FACTOR,
        width=image_size // VAE_FACTOR,
        patch=2,
        dim=dim,
        depth=depth,
        heads=dim // HEAD_DIM,
        dual_layers=tuple(range(dual)),
        qk_norm=qk_norm,
        position_size=position_size,
    )


def published_size(spec: MMDiTSpec) -> str | None:
    """Which published SD3 has this depth, width and dual attention; None if none has.  Its name and path do not count."""
    for name, (depth, dim, dual, _, _) in SD3_SIZES.items():
        if (spec.depth, spec.dim, len(spec.dual_layers)) == (depth, dim, dual):
            return name
    return None
