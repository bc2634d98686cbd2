"""Segue: a sampling engine for diffusion transformers."""

from segue.engine.engine import Engine, SampleRun
from segue.engine.guidance import (
    CFG,
    SGG,
    AutoGuidance,
    Branch,
    EarlyExit,
    Exit,
    Guidance,
    Perturb,
    PerturbedLayers,
    SkipLayer,
    Term,
    Unguided,
    Weight,
    from_extrapolation,
)
from segue.engine.plan import Plan, compile_plan
from segue.engine.sampler import CallInfo, NonFiniteError
from segue.engine.schedule import Schedule, flow_shift, from_scheduler, from_sigmas, linear, resolution_shift
from segue.engine.solvers import Solver, euler_maruyama
from segue.engine.window import Window

__version__ = "0.1.0"

__all__ = [
    "CFG",
    "SGG",
    "AutoGuidance",
    "Branch",
    "CallInfo",
    "EarlyExit",
    "Engine",
    "Exit",
    "Guidance",
    "NonFiniteError",
    "Perturb",
    "PerturbedLayers",
    "Plan",
    "SampleRun",
    "Schedule",
    "SkipLayer",
    "Solver",
    "Term",
    "Unguided",
    "Weight",
    "Window",
    "compile_plan",
    "euler_maruyama",
    "flow_shift",
    "from_extrapolation",
    "from_scheduler",
    "from_sigmas",
    "linear",
    "resolution_shift",
]
