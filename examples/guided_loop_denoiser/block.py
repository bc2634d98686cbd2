"""The block that this folder holds for diffusers; Segue itself is what it needs."""

from segue.engine.adapters.modular_loop import GuidedLoopDenoiser  # noqa: F401 - modular_config.json names it
