"""Launch configurations by architecture, operation and shape class.  Written by ``python -m segue.kernels.tune``."""

from .launch import LaunchConfig, RowLaunch

PROVENANCE: dict[str, str] = {}

TABLE: dict[str, dict[tuple[str, str], LaunchConfig]] = {
    a: {
        ("adaln", "d512"): RowLaunch(4, 1),
        ("adaln", "d1024"): RowLaunch(4, 2),
        ("adaln", "d2048"): RowLaunch(4, 4),
        ("adaln", "d4096"): RowLaunch(4, 8),
        ("adaln", "d8192"): RowLaunch(2, 16),
    }
    for a in ("sm_80", "sm_90", "sm_100", "gfx942")
}
