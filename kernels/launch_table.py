"""Launch configurations by architecture, operation and shape class.

Written by ``python -m segue.kernels.tune``.
"""

from .launch import AttentionLaunch, FlatLaunch, LaunchConfig, MatmulLaunch, ReadoutLaunch, RowLaunch

PROVENANCE: dict[str, str] = {
    "gfx942": "first candidate that compiles without spills, not timed; triton 3.9.0",
    "sm_100": "first candidate that compiles without spills, also with triton 3.6.0, not timed; triton 3.9.0",
    "sm_80": "first candidate that compiles without spills, not timed; triton 3.9.0",
    "sm_90": "first candidate that compiles without spills, not timed; triton 3.9.0",
}

# what was timed: a digest of all that the outcome of an entry or of a choice between backends depends on, by architecture
MEASURED: dict[str, dict[tuple[str, str, str], str]] = {}

# the backend that was measured to be the fastest, by architecture, operation and shape class
PREFERRED: dict[str, dict[tuple[str, str], str]] = {}

TABLE: dict[str, dict[tuple[str, str], LaunchConfig]] = {
    "gfx942": {
        ("adaln", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("adaln", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("adaln", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("adaln", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("adaln", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("adaln", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("adaln", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("adaln", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("attention", "fp32"): AttentionLaunch(block_q=32, block_k=32, warps=4, stages=1),
        ("attention", "k128 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=4, stages=3),
        ("attention", "k32 t64"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t2048"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t4096"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t64"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k96 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=4, stages=3),
        ("attention", "k96 t256"): AttentionLaunch(block_q=128, block_k=64, warps=4, stages=3),
        ("embed", "in256 m2048"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m512"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m8192"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("gather", "any"): FlatLaunch(block=1024, warps=4),
        ("gram", "any"): FlatLaunch(block=1024, warps=8),
        ("heads", "k128 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k32 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k64 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k64 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k64 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k96 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k96 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k96 m8192"): RowLaunch(rows=64, warps=4),
        ("linear", "m2048 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m512 in1024 out4096"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=1
        ),
        ("linear", "m512 in2048 out8192"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=1
        ),
        ("linear", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in256 out1024"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_residual", "m2048 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_residual", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_residual", "m512 in4096 out1024"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=1
        ),
        ("linear_residual", "m512 in8192 out2048"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=1
        ),
        ("linear_residual", "m8192 in1024 out256"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_residual", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_residual", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("philox", "any"): FlatLaunch(block=128, warps=4),
        ("quantise", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("quantise", "d1024 m8192"): RowLaunch(rows=4, warps=2),
        ("quantise", "d16384 m2048"): RowLaunch(rows=2, warps=16),
        ("quantise", "d16384 m8192"): RowLaunch(rows=4, warps=16),
        ("quantise", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("quantise", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("quantise", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("quantise", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("quantise", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("quantise", "d8192 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d8192 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d8192 m8192"): RowLaunch(rows=4, warps=8),
        ("readout", "o256 m512"): ReadoutLaunch(tokens=16, width=64, warps=4, stages=2),
        ("readout", "o64 m2048"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("readout", "o64 m512"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("readout", "o64 m8192"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("solver", "any"): FlatLaunch(block=1024, warps=4),
    },
    "sm_100": {
        ("adaln", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("adaln", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("adaln", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("adaln", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("adaln", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("adaln", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("adaln", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("adaln", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("attention", "fp32"): AttentionLaunch(block_q=16, block_k=16, warps=4, stages=1),
        ("attention", "k128 t1024"): AttentionLaunch(block_q=128, block_k=128, warps=8, stages=2),
        ("attention", "k32 t64"): AttentionLaunch(block_q=128, block_k=128, warps=8, stages=2),
        ("attention", "k64 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t2048"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t4096"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t64"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k96 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k96 t256"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("embed", "in256 m2048"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m512"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m8192"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("gather", "any"): FlatLaunch(block=1024, warps=4),
        ("gram", "any"): FlatLaunch(block=1024, warps=8),
        ("heads", "k128 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k32 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k64 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k64 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k64 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k96 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k96 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k96 m8192"): RowLaunch(rows=64, warps=4),
        ("linear", "m2048 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear", "m2048 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m512 in1024 out4096"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear", "m512 in2048 out8192"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear", "m8192 in256 out1024"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear", "m8192 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear", "m8192 in4096 out4096"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_heads", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_heads", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_residual", "m2048 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m512 in4096 out1024"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_residual", "m512 in8192 out2048"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_residual", "m8192 in1024 out256"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("philox", "any"): FlatLaunch(block=128, warps=4),
        ("quantise", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("quantise", "d1024 m8192"): RowLaunch(rows=4, warps=2),
        ("quantise", "d16384 m2048"): RowLaunch(rows=2, warps=16),
        ("quantise", "d16384 m8192"): RowLaunch(rows=4, warps=16),
        ("quantise", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("quantise", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("quantise", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("quantise", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("quantise", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("quantise", "d8192 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d8192 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d8192 m8192"): RowLaunch(rows=4, warps=8),
        ("readout", "o256 m512"): ReadoutLaunch(tokens=16, width=64, warps=8, stages=2),
        ("readout", "o64 m2048"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("readout", "o64 m512"): ReadoutLaunch(tokens=2, width=512, warps=4, stages=2),
        ("readout", "o64 m8192"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("solver", "any"): FlatLaunch(block=1024, warps=4),
    },
    "sm_80": {
        ("adaln", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("adaln", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("adaln", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("adaln", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("adaln", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("adaln", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("adaln", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("adaln", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("attention", "fp32"): AttentionLaunch(block_q=32, block_k=32, warps=4, stages=1),
        ("attention", "k128 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k32 t64"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t2048"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t4096"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t64"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k96 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k96 t256"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("embed", "in256 m2048"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m512"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m8192"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("gather", "any"): FlatLaunch(block=1024, warps=4),
        ("gram", "any"): FlatLaunch(block=1024, warps=8),
        ("heads", "k128 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k32 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k64 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k64 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k64 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k96 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k96 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k96 m8192"): RowLaunch(rows=64, warps=4),
        ("linear", "m2048 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m512 in1024 out4096"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear", "m512 in2048 out8192"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in256 out1024"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out4096"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_heads", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_heads", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m2048 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m512 in4096 out1024"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_residual", "m512 in8192 out2048"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_residual", "m8192 in1024 out256"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("philox", "any"): FlatLaunch(block=128, warps=4),
        ("quantise", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("quantise", "d1024 m8192"): RowLaunch(rows=4, warps=2),
        ("quantise", "d16384 m2048"): RowLaunch(rows=2, warps=16),
        ("quantise", "d16384 m8192"): RowLaunch(rows=4, warps=16),
        ("quantise", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("quantise", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("quantise", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("quantise", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("quantise", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("quantise", "d8192 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d8192 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d8192 m8192"): RowLaunch(rows=4, warps=8),
        ("readout", "o256 m512"): ReadoutLaunch(tokens=16, width=64, warps=8, stages=2),
        ("readout", "o64 m2048"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("readout", "o64 m512"): ReadoutLaunch(tokens=2, width=512, warps=4, stages=2),
        ("readout", "o64 m8192"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("solver", "any"): FlatLaunch(block=1024, warps=4),
    },
    "sm_90": {
        ("adaln", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("adaln", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("adaln", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("adaln", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("adaln", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("adaln", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("adaln", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("adaln", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("attention", "fp32"): AttentionLaunch(block_q=16, block_k=16, warps=4, stages=1),
        ("attention", "k128 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k32 t64"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t2048"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t4096"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k64 t64"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k96 t1024"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("attention", "k96 t256"): AttentionLaunch(block_q=128, block_k=64, warps=8, stages=3),
        ("embed", "in256 m2048"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m512"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("embed", "in256 m8192"): MatmulLaunch(block_m=64, block_n=64, block_k=64, group=1, warps=4, stages=2, resident=1),
        ("gather", "any"): FlatLaunch(block=1024, warps=4),
        ("gram", "any"): FlatLaunch(block=1024, warps=8),
        ("heads", "k128 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k32 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k64 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k64 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k64 m8192"): RowLaunch(rows=64, warps=4),
        ("heads", "k96 m2048"): RowLaunch(rows=32, warps=4),
        ("heads", "k96 m512"): RowLaunch(rows=16, warps=2),
        ("heads", "k96 m8192"): RowLaunch(rows=64, warps=4),
        ("linear", "m2048 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m512 in1024 out4096"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear", "m512 in2048 out8192"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in256 out1024"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out16384"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out4096"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m2048 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m8192 in2048 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_heads", "m8192 in4096 out8192"): MatmulLaunch(
            block_m=128, block_n=256, block_k=64, group=8, warps=8, stages=3, resident=1
        ),
        ("linear_residual", "m2048 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m2048 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m512 in4096 out1024"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_residual", "m512 in8192 out2048"): MatmulLaunch(
            block_m=64, block_n=128, block_k=64, group=8, warps=4, stages=3, resident=2
        ),
        ("linear_residual", "m8192 in1024 out256"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m8192 in16384 out4096"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("linear_residual", "m8192 in8192 out2048"): MatmulLaunch(
            block_m=128, block_n=128, block_k=64, group=8, warps=8, stages=4, resident=1
        ),
        ("philox", "any"): FlatLaunch(block=128, warps=4),
        ("quantise", "d1024 m512"): RowLaunch(rows=1, warps=2),
        ("quantise", "d1024 m8192"): RowLaunch(rows=4, warps=2),
        ("quantise", "d16384 m2048"): RowLaunch(rows=2, warps=16),
        ("quantise", "d16384 m8192"): RowLaunch(rows=4, warps=16),
        ("quantise", "d2048 m2048"): RowLaunch(rows=2, warps=4),
        ("quantise", "d2048 m512"): RowLaunch(rows=1, warps=4),
        ("quantise", "d2048 m8192"): RowLaunch(rows=4, warps=4),
        ("quantise", "d4096 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d4096 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d4096 m8192"): RowLaunch(rows=4, warps=8),
        ("quantise", "d512 m8192"): RowLaunch(rows=4, warps=1),
        ("quantise", "d8192 m2048"): RowLaunch(rows=2, warps=8),
        ("quantise", "d8192 m512"): RowLaunch(rows=1, warps=8),
        ("quantise", "d8192 m8192"): RowLaunch(rows=4, warps=8),
        ("readout", "o256 m512"): ReadoutLaunch(tokens=16, width=64, warps=8, stages=2),
        ("readout", "o64 m2048"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("readout", "o64 m512"): ReadoutLaunch(tokens=2, width=512, warps=4, stages=2),
        ("readout", "o64 m8192"): ReadoutLaunch(tokens=16, width=128, warps=4, stages=2),
        ("solver", "any"): FlatLaunch(block=1024, warps=4),
    },
}
