"""Normalized attention guidance patched into diffusers' own SD3 transformer by an attention processor: the published way.

The batch is doubled: the second half has the negative prompts.  In every joint attention the second half takes the image of
the first, both halves attend whole, and both give the combined output; what the second half's image becomes between two
attentions is never looked at.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from full_depth_sd3 import Inputs
from torch import Tensor


class NagProcessor:
    def __init__(self, scale: float, tau: float, alpha: float):
        self.scale, self.tau, self.alpha = scale, tau, alpha

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        if encoder_hidden_states is None:  # the second attention of SD3.5-medium, of the image alone
            q, k, v = (self.heads(attn, layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
            out = self.attend(self.norm(attn.norm_q, q), self.norm(attn.norm_k, k), v)
            return attn.to_out[0](out)
        batch, tokens = len(hidden_states) // 2, hidden_states.shape[1]
        image = torch.cat([hidden_states[:batch]] * 2)
        q, k, v = (self.heads(attn, layer(image)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_q, text_k, text_v = (self.heads(attn, layer(encoder_hidden_states)) for layer in added)
        q = torch.cat([self.norm(attn.norm_q, q), self.norm(attn.norm_added_q, text_q)], dim=2)
        k = torch.cat([self.norm(attn.norm_k, k), self.norm(attn.norm_added_k, text_k)], dim=2)
        out = self.attend(q, k, torch.cat([v, text_v], dim=2))
        z, w = out[:batch, :tokens], out[batch:, :tokens]
        g = z * self.scale - w * (self.scale - 1)
        ratio = g.norm(p=1, dim=-1, keepdim=True) / z.norm(p=1, dim=-1, keepdim=True)
        g = g * ratio.clamp(max=self.tau) / ratio
        combined = attn.to_out[0](g * self.alpha + z * (1 - self.alpha))
        text = out[:, tokens:]
        return torch.cat([combined] * 2), text if attn.context_pre_only else attn.to_add_out(text)

    @staticmethod
    def heads(attn, x: Tensor) -> Tensor:
        return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    @staticmethod
    def norm(norm, x: Tensor) -> Tensor:
        return x if norm is None else norm(x)

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@contextmanager
def nag_processors(transformer, scale: float, tau: float, alpha: float):
    """The transformer with these processors, for doubled batches."""
    before = transformer.attn_processors
    transformer.set_attn_processor(NagProcessor(scale, tau, alpha))
    try:
        yield
    finally:
        transformer.set_attn_processor(before)


@torch.no_grad()
def nag_reference(
    transformer, inputs: Inputs, numbers: tuple[float, float, float], skip_layers: tuple[int, ...] = ()
) -> Tensor:
    """The output for the prompts of ``inputs``, guided by their negative prompts, [B, C, H, W]."""
    x, time = torch.cat([inputs.x] * 2), torch.cat([inputs.time] * 2)
    texts, pooled = torch.cat(inputs.contexts), torch.cat(inputs.pooled)
    with nag_processors(transformer, *numbers):
        out = transformer(x, texts, pooled, time, skip_layers=list(skip_layers) or None, return_dict=False)[0]
    return out[: len(inputs.x)]
