"""How long ProbSparse attention takes on this CPU beside full attention, alone and in a block, in interleaved rounds."""

from dataclasses import replace

import torch

from segue.kernels.dispatch import select_kernels
from segue.models.attention_kind import PROBSPARSE
from segue.models.sit import Block
from segue.models.sizes import dit_spec

from ..timing import Statistic, host_timer, interleave, paired_ratio

PIXELS, ROUNDS = 512, 7
SPEC = dit_spec("XL/2", PIXELS)
TOKENS = SPEC.tokens(SPEC.height, SPEC.width)
TIMES = "probsparse over full"
TIMED_PARTS = ATTENTION, BLOCK = f"seconds, attention of {TOKENS} tokens", f"seconds, block of {TOKENS} tokens"


@torch.inference_mode()
def attention_times(rounds: int = ROUNDS) -> dict[str, Statistic]:
    """Ratios of seconds, ProbSparse over full, by what was timed: one row of a DiT-XL/2 at 512 pixels."""
    spec, tokens = SPEC, TOKENS
    kernels = select_kernels(torch.device("cpu"), torch.float32).kernels
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, tokens, spec.heads, spec.head_dim, generator=generator).transpose(2, 3)
    sparse = replace(spec, attention=PROBSPARSE)
    dense_block, sparse_block = Block(spec).eval(), Block(sparse).eval()
    budgets = sparse_block.attn.sparse.budgets(tokens)
    h, modulation = torch.randn(1, tokens, spec.dim, generator=generator), torch.zeros(1, 6 * spec.dim)
    cases = {
        ATTENTION: (
            lambda: kernels.attention(q, k, v),
            lambda: kernels.sparse_attention(q, k, v, *budgets),
        ),
        BLOCK: (
            lambda: dense_block(h.clone(), modulation, kernels),
            lambda: sparse_block(h.clone(), modulation, kernels),
        ),
    }
    found = {}
    for name, (dense, sparse_one) in cases.items():
        seconds = interleave({"full": dense, PROBSPARSE: sparse_one}, host_timer, rounds)
        found[name] = paired_ratio(seconds[PROBSPARSE], seconds["full"])
    return found
