"""Sizes and FLOPs of the MMDiT of SD3 and SD3.5 (arXiv 2403.03206; dual attention: Stability's MMDiT-X)."""

from collections.abc import Mapping
from dataclasses import dataclass

from .spec import ModelSpec, Prediction, TimeInput, positive_integer, time_embedding_flops


@dataclass(frozen=True)
class MMDiTSpec(ModelSpec):
    """A text-to-image transformer with an image and a text stream.

    ``text_dim`` and ``pooled_dim`` are the widths of a prompt's token and pooled embeddings; ``dual_layers`` the blocks with
    a second, image-only attention; ``position_size`` the side of the position table in patches, cropped at its centre for a
    latent; ``text_tokens`` the prompt length M that costs and buffers are made for.  ``scale_first``: the last modulations of
    both streams hold (scale, shift), as diffusers stores them, not (shift, scale), as published.
    """

    prediction: Prediction = "velocity"
    time: TimeInput = "sigma_x1000"
    text_dim: int = 4096
    pooled_dim: int = 2048
    position_size: int = 192
    dual_layers: tuple[int, ...] = ()
    qk_norm: bool = False
    scale_first: bool = False
    text_tokens: int = 333

    def __post_init__(self):
        for field in ("text_dim", "pooled_dim", "position_size", "text_tokens"):
            object.__setattr__(self, field, positive_integer(field, getattr(self, field)))
        if self.out_channels not in (0, self.channels):
            raise ValueError(_channels_text(self.channels, self.out_channels))
        super().__post_init__()
        if self.exits:
            raise ValueError(f"an MMDiT has no early-exit heads, got exits {self.exits}")
        object.__setattr__(self, "dual_layers", tuple(sorted(self.dual_layers)))
        for layer in self.dual_layers:
            if not 0 <= layer < self.depth:
                raise ValueError(f"dual attention must be in blocks 0 to {self.depth - 1}, got {layer}")

    @classmethod
    def from_config(cls, config: Mapping, name: str) -> "MMDiTSpec":
        """The spec of a diffusers ``SD3Transformer2DModel`` configuration.

        Raises ``ValueError`` for what this network cannot express.
        """

        def integer(key: str, default: int | None = None) -> int:
            return positive_integer(key, config.get(key, default))

        heads, dual = integer("num_attention_heads"), config.get("dual_attention_layers", ())
        dim, sample, channels = heads * integer("attention_head_dim"), integer("sample_size", 128), integer("in_channels", 16)
        if integer("caption_projection_dim", dim) != dim:
            raise ValueError(f"caption_projection_dim must equal the width {dim}, got {config['caption_projection_dim']}")
        if config.get("qk_norm") not in (None, "rms_norm"):
            raise ValueError(f"qk_norm must be None or 'rms_norm', got {config['qk_norm']!r}")
        if not isinstance(dual, list | tuple) or not all(type(layer) is int for layer in dual):
            raise ValueError(f"dual_attention_layers must be a list of integers, got {dual!r}")
        return cls(
            name=name,
            channels=channels,
            height=sample,
            width=sample,
            patch=integer("patch_size", 2),
            dim=dim,
            depth=integer("num_layers"),
            heads=heads,
            out_channels=channels if config.get("out_channels", ...) is None else integer("out_channels", 16),
            text_dim=integer("joint_attention_dim", 4096),
            pooled_dim=integer("pooled_projection_dim", 2048),
            position_size=integer("pos_embed_max_size", 96),
            dual_layers=tuple(dual),
            qk_norm=config.get("qk_norm") is not None,
            scale_first=True,
        )

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ValueError`` unless a latent of this size can be cut into patches that the position table covers."""
        super().check_size(height, width)
        if max(height, width) > self.patch * self.position_size:
            raise ValueError(
                f"latent size must be at most {self.patch * self.position_size} (the position table), got {height} x {width}"
            )

    def distinct_conditions(self, conditions: tuple[str | int, ...], batch: int) -> int:
        """Every sample may have its own prompt and its own negative prompt."""
        return len(conditions) * batch

    def is_last(self, layer: int) -> bool:
        """Whether this is the last block, after whose attention the text stream ends."""
        return layer == self.depth - 1

    def modulation_chunks(self, layer: int) -> tuple[int, int]:
        """Modulation vectors of the image and of the text stream of one block."""
        return (9 if layer in self.dual_layers else 6), (2 if self.is_last(layer) else 6)

    def modulation_flops(self) -> int:
        vectors = sum(sum(self.modulation_chunks(layer)) for layer in range(self.depth)) + 2
        return 2 * vectors * self.dim**2 + time_embedding_flops(self.dim)

    def block_flops(self, layer: int, tokens: int) -> int:
        """FLOPs of one joint block for one row of ``tokens`` image tokens and ``text_tokens`` text tokens."""
        joint = tokens + self.text_tokens
        flops = 2 * joint * 3 * self.dim**2 + 4 * joint**2 * self.dim  # QKV of both streams, joint attention
        leaving = tokens if self.is_last(layer) else joint
        flops += 2 * leaving * (self.dim**2 + 2 * self.dim * self.mlp_dim)  # out-projection and MLP
        if layer in self.dual_layers:
            flops += 2 * tokens * 4 * self.dim**2 + 4 * tokens**2 * self.dim
        return flops

    def second_text_flops(self, layer: int, tokens: int) -> int:
        """FLOPs that a second text adds to one joint block for one row of ``tokens`` image tokens.

        Its own stream, its attention to the image and itself, and the image's to it; the scores among image tokens serve both
        texts.
        """
        text = self.text_tokens
        flops = 2 * text * 3 * self.dim**2 + 4 * (2 * tokens * text + text**2) * self.dim
        return flops if self.is_last(layer) else flops + 2 * text * (self.dim**2 + 2 * self.dim * self.mlp_dim)

    def module_flops(self, height: int, width: int) -> int:
        """FLOPs of one forward of the whole module for one sample.

        That is :meth:`forward_flops` and what a run computes once for all its calls: the text embedding and the modulation.
        """
        vectors = sum(sum(self.modulation_chunks(layer)) for layer in range(self.depth)) + 2
        once = 2 * self.text_tokens * self.text_dim * self.dim + 2 * vectors * self.dim**2
        return self.forward_flops(height, width) + once


def _channels_text(taken: int, given: int) -> str:
    """Why a transformer that takes other channels than it gives is not run."""
    text = f"the transformer takes {taken} channels and gives {given}"
    if taken == 2 * given + 1:
        return f"{text}: it is an inpainting one, which needs a mask and a masked picture at every call and is not run here"
    return f"{text}; it must give as many as it takes"
