"""Launch configurations by architecture, operation and shape class.  Written by ``python -m segue.kernels.tune``."""

from .launch import AttentionLaunch, FlatLaunch, LaunchConfig, MatmulLaunch, ReadoutLaunch, RowLaunch

PROVENANCE: dict[str, str] = {}

# operations for which another backend than the default was measured to be faster
PREFERRED: dict[str, dict[str, str]] = {}

TABLE: dict[str, dict[tuple[str, str], LaunchConfig]] = {
    a: {
        ("adaln", "d512"): RowLaunch(4, 1),
        ("adaln", "d1024"): RowLaunch(4, 2),
        ("adaln", "d2048"): RowLaunch(4, 4),
        ("adaln", "d4096"): RowLaunch(4, 8),
        ("adaln", "d8192"): RowLaunch(2, 16),
        ("heads", "any"): RowLaunch(64, 4),
        ("gather", "any"): FlatLaunch(1024, 4),
        ("solver", "any"): FlatLaunch(1024, 4),
        ("philox", "any"): FlatLaunch(128, 4),
        ("correction", "any"): FlatLaunch(4096, 8),
        ("linear", "m64"): MatmulLaunch(64, 64, 64, 8, 4, 3),
        ("linear", "m512"): MatmulLaunch(128, 128, 64, 8, 8, 3),
        ("linear", "m4096"): MatmulLaunch(128, 256, 64, 8, 8, 3),
        ("linear_residual", "m64"): MatmulLaunch(64, 64, 64, 8, 4, 3),
        ("linear_residual", "m512"): MatmulLaunch(128, 128, 64, 8, 8, 3),
        ("linear_residual", "m4096"): MatmulLaunch(128, 128, 64, 8, 8, 3),
        ("readout", "o64"): ReadoutLaunch(16, 64, 4, 2),
        ("readout", "o256"): ReadoutLaunch(16, 64, 8, 2),
        ("attention", "k32"): AttentionLaunch(128, 64, 4, 3),
        ("attention", "k64"): AttentionLaunch(128, 64, 8, 3),
        ("attention", "k96"): AttentionLaunch(128, 64, 8, 3),
        ("attention", "k128"): AttentionLaunch(128, 64, 8, 3),
    }
    for a in ("sm_80", "sm_90", "sm_100", "gfx942")
}
