"""Segue: a sampling engine for diffusion transformers."""

import importlib

__version__ = "0.1.0"

# Public names by the module they live in.  A module is imported when one of its names is first used, so `import segue` and
# `segue --help` do not wait for torch.
_MODULES = {
    "segue.engine.adapters.diffusers": ("Attachment", "attach", "detach"),
    "segue.engine.engine": ("Engine",),
    "segue.engine.planning.ancestral": ("dpm_sde", "euler_ancestral", "lcm"),
    "segue.engine.planning.compile": ("compile_plan",),
    "segue.engine.planning.exponential": ("deis", "dpm_multistep", "res_multistep", "unipc"),
    "segue.engine.planning.plan": ("Plan",),
    "segue.engine.planning.plan_warnings": ("PlanWarning",),
    "segue.engine.planning.schedule": (
        "Schedule",
        "beta",
        "exponential",
        "flow_shift",
        "from_scheduler",
        "from_sigmas",
        "karras",
        "linear",
        "resolution_shift",
    ),
    "segue.engine.planning.solver_rows": ("Solver",),
    "segue.engine.planning.solvers": ("euler_maruyama",),
    "segue.engine.records.sample_run": ("SampleRun",),
    "segue.engine.rules.gfcg": ("GFCG", "ICG"),
    "segue.engine.rules.branch": (
        "Branch",
        "Exit",
        "Perturb",
    ),
    "segue.engine.rules.guidance": (
        "Guidance",
        "Term",
        "Unguided",
        "Weight",
    ),
    "segue.engine.rules.linear_rules": (
        "CFG",
        "NAG",
        "S2",
        "SGG",
        "AutoGuidance",
        "CFGPlusPlus",
        "EarlyExit",
        "PerturbedLayers",
        "SkipLayer",
        "from_extrapolation",
    ),
    "segue.engine.rules.guided_corrections": ("EnergyPreserving", "HiGS", "Renorm", "Rescale"),
    "segue.engine.rules.spectral_refinement": ("SpectralRefine",),
    "segue.engine.rules.reference_corrections": (
        "ADG",
        "APG",
        "FBG",
        "FDG",
        "MAMBO",
        "TCFG",
        "BetaCFG",
        "CFGZeroStar",
        "FreSca",
        "PerpNeg",
        "PowerLawCFG",
    ),
    "segue.engine.rules.presets": ("parse_rule",),
    "segue.engine.rules.solver_corrections": ("TSR", "EpsilonScaling"),
    "segue.engine.rules.window": ("Window",),
    "segue.engine.running.sampler": ("CallInfo", "NonFiniteError"),
    "segue.engine.scheduling.errors": ("DeadlineError", "MemoryLimitError", "QueueFullError", "SchedulerClosedError"),
    "segue.engine.scheduling.request": ("Progress", "Request"),
    "segue.engine.scheduling.scheduler": ("StepScheduler",),
    "segue.engine.scheduling.stats": ("SchedulerStats",),
}
# Classes on top of diffusers' own, made when they are first asked for: a star import leaves them, and diffusers, alone.
_ON_DIFFUSERS = {
    "segue.engine.adapters.modular": ("SegmentedGuidance",),
    "segue.engine.adapters.modular_loop": ("GuidedLoopDenoiser",),
}
_HOMES = {name: module for module, names in (_MODULES | _ON_DIFFUSERS).items() for name in names}

__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'segue' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
