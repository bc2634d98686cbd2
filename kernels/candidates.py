"""Launch configurations worth trying for an entry of the table, in the order of expectation."""

from .launch import AttentionLaunch, FlatLaunch, Key, LaunchConfig, MatmulLaunch, ReadoutLaunch, RowLaunch
from .shape_class import FULL_PRECISION

FLAT = (FlatLaunch(1024, 4), FlatLaunch(2048, 8), FlatLaunch(512, 4), FlatLaunch(4096, 8))
MATMUL = (
    MatmulLaunch(128, 256, 64, 8, 8, 3),
    MatmulLaunch(128, 256, 64, 8, 8, 4),
    MatmulLaunch(128, 128, 64, 8, 8, 4),
    MatmulLaunch(128, 128, 64, 8, 8, 3),
    MatmulLaunch(128, 128, 64, 8, 8, 2),
    MatmulLaunch(128, 128, 64, 8, 4, 3),
    MatmulLaunch(64, 128, 64, 8, 4, 3, 2),
    MatmulLaunch(64, 64, 64, 8, 4, 2, 2),
)
# with few rows large tiles leave multiprocessors without work
SMALL_MATMUL = (
    MatmulLaunch(64, 128, 64, 8, 4, 3, 2),
    MatmulLaunch(64, 128, 64, 8, 4, 3),
    MatmulLaunch(64, 128, 64, 8, 4, 4, 2),
    MatmulLaunch(64, 64, 64, 8, 4, 4, 2),
    MatmulLaunch(64, 64, 64, 8, 4, 2, 2),
    MatmulLaunch(128, 64, 64, 8, 4, 4),
    MatmulLaunch(128, 128, 64, 8, 8, 3),
    MatmulLaunch(128, 128, 64, 8, 4, 3),
)
# heads lie within a tile, of 128 numbers at most
HEADS_MATMUL = (
    *MATMUL[:5],
    MatmulLaunch(64, 128, 64, 8, 4, 3, 2),
    MatmulLaunch(64, 128, 64, 8, 4, 2, 2),
)
CANDIDATES: dict[str, tuple[LaunchConfig, ...]] = {
    "embed": (
        MatmulLaunch(64, 64, 64, 1, 4, 2),
        MatmulLaunch(64, 128, 64, 1, 4, 2),
        MatmulLaunch(32, 64, 64, 1, 4, 2),
        MatmulLaunch(32, 64, 32, 1, 4, 2),
        MatmulLaunch(128, 64, 64, 1, 8, 2),
    ),
    "gather": FLAT,
    "solver": FLAT,
    "philox": (FlatLaunch(128, 4), FlatLaunch(256, 4), FlatLaunch(512, 8)),
    "gram": (FlatLaunch(1024, 8), FlatLaunch(1024, 4), FlatLaunch(2048, 8), FlatLaunch(2048, 16)),
    "attention": (  # first what leaves room for two a multiprocessor up to a head dim of 64: one multiplies, one takes powers
        AttentionLaunch(128, 64, 8, 3),
        AttentionLaunch(128, 128, 8, 2),
        AttentionLaunch(128, 128, 8, 3),
        AttentionLaunch(128, 64, 4, 3),
        AttentionLaunch(64, 64, 4, 3),
        AttentionLaunch(128, 64, 8, 2),
        AttentionLaunch(128, 32, 8, 2),
        AttentionLaunch(64, 32, 4, 2),
    ),
    "readout": (
        ReadoutLaunch(16, 128, 4, 2),
        ReadoutLaunch(32, 128, 8, 2),
        ReadoutLaunch(16, 64, 4, 2),
        ReadoutLaunch(16, 64, 8, 2),
        ReadoutLaunch(16, 32, 8, 2),
        ReadoutLaunch(16, 32, 16, 2),
    ),
}
# 256 tokens in blocks of 16 are 16 programs, which walk a row in steps of 128 channels that wait for each other, twice: 19 us
# on an H100 at D = 1152.  Blocks of 2 fill the card, and a third of the steps is left.
SMALL_READOUT = (ReadoutLaunch(2, 512, 4, 2),)
SMALL_READOUT_CLASS = ["o64", "m512"]
ATTENTION_IN_FULL_PRECISION = tuple(AttentionLaunch(*sizes, 4, 1) for sizes in ((32, 32), (32, 16), (16, 32), (16, 16)))
# warps that hold a row in registers, by the bucket of its width
ROW_WARPS = {
    "d512": (1, 2, 4),
    "d1024": (2, 4, 1),
    "d2048": (4, 8, 2),
    "d4096": (8, 4, 16),
    "d8192": (8, 16, 4),
    "d16384": (16, 8),
}
# rows per program by the bucket of their number: one for each program while that leaves multiprocessors idle
ROWS_PER_PROGRAM = {"m512": (1, 2), "m2048": (2, 1, 4), "m8192": (4, 2, 8, 1)}
PAIRS = {  # of tokens and heads per program
    "m512": (RowLaunch(16, 2), RowLaunch(32, 4), RowLaunch(64, 4)),
    "m2048": (RowLaunch(32, 4), RowLaunch(64, 4), RowLaunch(16, 2)),
    "m8192": (RowLaunch(64, 4), RowLaunch(32, 4), RowLaunch(128, 8), RowLaunch(128, 4), RowLaunch(16, 2)),
}


def candidates(key: Key) -> tuple[LaunchConfig, ...]:
    """The configurations for one entry; for an entry that was not timed, the first that compiles well is taken."""
    operation, shape_class = key
    if (operation, shape_class) == ("attention", FULL_PRECISION):
        return ATTENTION_IN_FULL_PRECISION
    words = shape_class.split()
    if operation in ("adaln", "quantise"):
        width, rows = words
        return tuple(RowLaunch(count, warps) for warps in ROW_WARPS[width] for count in ROWS_PER_PROGRAM[rows])
    if operation == "heads":
        return PAIRS[words[-1]]
    if operation == "linear_heads":
        return HEADS_MATMUL[2:] if words[0] == "m512" else HEADS_MATMUL
    if operation in ("linear", "linear_residual"):
        return SMALL_MATMUL if words[0] == "m512" else MATMUL
    if operation == "readout" and words == SMALL_READOUT_CLASS:
        return SMALL_READOUT + CANDIDATES[operation]
    return CANDIDATES[operation]
