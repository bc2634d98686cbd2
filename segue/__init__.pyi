# The public names as type checkers read them: __init__.py loads each when it is first used.

from segue.engine.adapters.diffusers import Attachment as Attachment, attach as attach, detach as detach
from segue.engine.adapters.modular import SegmentedGuidance as SegmentedGuidance
from segue.engine.adapters.modular_loop import GuidedLoopDenoiser as GuidedLoopDenoiser
from segue.engine.engine import Engine as Engine
from segue.engine.planning.ancestral import dpm_sde as dpm_sde, euler_ancestral as euler_ancestral, lcm as lcm
from segue.engine.planning.compile import compile_plan as compile_plan
from segue.engine.planning.exponential import (
    deis as deis,
    dpm_multistep as dpm_multistep,
    res_multistep as res_multistep,
    unipc as unipc,
)
from segue.engine.planning.plan import Plan as Plan
from segue.engine.planning.plan_warnings import PlanWarning as PlanWarning
from segue.engine.planning.schedule import (
    Schedule as Schedule,
    beta as beta,
    exponential as exponential,
    flow_shift as flow_shift,
    from_scheduler as from_scheduler,
    from_sigmas as from_sigmas,
    karras as karras,
    linear as linear,
    resolution_shift as resolution_shift,
)
from segue.engine.planning.solver_rows import Solver as Solver
from segue.engine.planning.solvers import euler_maruyama as euler_maruyama
from segue.engine.records.sample_run import SampleRun as SampleRun
from segue.engine.rules.gfcg import GFCG as GFCG, ICG as ICG
from segue.engine.rules.guided_corrections import (
    EnergyPreserving as EnergyPreserving,
    HiGS as HiGS,
    Renorm as Renorm,
    Rescale as Rescale,
)
from segue.engine.rules.reference_corrections import (
    ADG as ADG,
    APG as APG,
    FBG as FBG,
    FDG as FDG,
    MAMBO as MAMBO,
    TCFG as TCFG,
    BetaCFG as BetaCFG,
    CFGZeroStar as CFGZeroStar,
    FreSca as FreSca,
    PerpNeg as PerpNeg,
    PowerLawCFG as PowerLawCFG,
)
from segue.engine.rules.spectral_refinement import SpectralRefine as SpectralRefine
from segue.engine.rules.branch import (
    Branch as Branch,
    Exit as Exit,
    Perturb as Perturb,
)
from segue.engine.rules.guidance import (
    Guidance as Guidance,
    Term as Term,
    Unguided as Unguided,
    Weight as Weight,
)
from segue.engine.rules.linear_rules import (
    CFG as CFG,
    NAG as NAG,
    S2 as S2,
    SGG as SGG,
    AutoGuidance as AutoGuidance,
    CFGPlusPlus as CFGPlusPlus,
    EarlyExit as EarlyExit,
    PerturbedLayers as PerturbedLayers,
    SkipLayer as SkipLayer,
    from_extrapolation as from_extrapolation,
)
from segue.engine.rules.presets import parse_rule as parse_rule
from segue.engine.rules.solver_corrections import TSR as TSR, EpsilonScaling as EpsilonScaling
from segue.engine.rules.window import Window as Window
from segue.engine.running.sampler import CallInfo as CallInfo, NonFiniteError as NonFiniteError
from segue.engine.scheduling.errors import (
    DeadlineError as DeadlineError,
    MemoryLimitError as MemoryLimitError,
    QueueFullError as QueueFullError,
    SchedulerClosedError as SchedulerClosedError,
)
from segue.engine.scheduling.request import Progress as Progress, Request as Request
from segue.engine.scheduling.scheduler import StepScheduler as StepScheduler
from segue.engine.scheduling.stats import SchedulerStats as SchedulerStats

__version__: str
