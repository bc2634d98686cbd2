"""Random streams: one generator for every pair of a seed and an index."""

import torch

MAX_SEED = 2**31
WORDS = 1 << 32  # of a seed, PyTorch's generator on the CPU reads the lower 32 bits alone


def stream_generator(seed: int, index: int) -> torch.Generator:
    """The generator number ``index``, in [0, 2^32), of the stream ``seed``: below 2^31 a run's own.

    Every stream runs through all 2^32 states of the generator in an order of its own, so no number of a stream repeats
    another; stream 0 runs through them as they are counted, which the bundled networks were trained on.
    """
    mixed = _mix(seed)
    factor, offset = (2 * mixed + 1) % WORDS, mixed // WORDS  # odd factors are those with an inverse
    return torch.Generator().manual_seed((factor * index + offset) % WORDS)


def _mix(seed: int) -> int:
    """A bijection of 64 bits that keeps 0.  Source: the finaliser of MurmurHash3."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        seed = (seed ^ seed >> 33) * factor % (1 << 64)
    return seed ^ seed >> 33
