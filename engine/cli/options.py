"""Options that several commands share: their types for typer, and what they are once collected."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..rules.rule_names import rules_text

DEFAULT_MODEL, DEFAULT_LINEARS, DEFAULT_RULE, DEFAULT_SOLVER, DEFAULT_STEPS = "herbarium", "native", "sgg", "euler", 28
DEFAULT_STRENGTH = 0.6
UNGUIDED = "none"
WEAK = "weak"  # the network that the rule ag takes by default
CHECKPOINT_HINTS, DIFFUSERS_HINTS = ("family", "heads", "branch_head"), ("revision", "variant")  # options of Source
_MODEL, _RULE, _RUN, _PROMPT, _OUT = "Model", "Guidance", "Run", "Prompts", "Output"
RULE_NAMES = "--guidance", "-g", "--rule", "-r"  # alike wherever a rule is taken
RULE_HELP = (
    f"NAME:OPTION=VALUE,..., or a sum with +. Rules: {rules_text()}. Corrections, to add: {rules_text(corrections=True)}. "
    "Needed options come first; those left out are the model's own numbers, or the usual ones, which is said. "
    "For pictures with a number each, or a rule each: scale=2,4, or rules with | between. "
    "Windows: sigma:LOW,HIGH, fraction:START,STOP, steps:FIRST,LAST or all. References: uncond, parent, parent:N or a class."
)


def _option(*names: str, panel: str, shown: str | bool = False, **settings):
    return typer.Option(
        *names, rich_help_panel=panel, show_default=shown if isinstance(shown, bool) else str(shown), **settings
    )


ModelOption = Annotated[
    str | None,
    _option(
        "--model",
        panel=_MODEL,
        shown=DEFAULT_MODEL,
        help="A bundled model, a checkpoint file, a folder or a hub id; for prompts an SD3 pipeline.",
    ),
]
PlanModelOption = Annotated[
    str | None,
    _option(
        "--model",
        panel=_MODEL,
        shown=DEFAULT_MODEL,
        help="As in segue sample, or a size without weights: DiT-XL/2, SiT-B/4-512, sd3-medium, sd3.5-medium, sd3.5-large.",
    ),
]
FamilyOption = Annotated[
    str | None,
    _option("--family", panel=_MODEL, help="dit, sit or repa, for checkpoints whose tensor names do not tell."),
]
HeadsOption = Annotated[
    int | None, _option("--heads", panel=_MODEL, help="Attention heads, for checkpoints of widths that were never published.")
]
BranchOption = Annotated[
    int | None,
    _option(
        "--branch-head", panel=_MODEL, help="Blocks before the branch head (mid_layer), where the checkpoint does not tell."
    ),
]
RevisionOption = Annotated[
    str | None, _option("--revision", panel=_MODEL, help="Branch, tag or commit of a model on the hub.", shown="main")
]
VariantOption = Annotated[
    str | None, _option("--variant", panel=_MODEL, help="Variant of a diffusers folder's weights, as in fp16.")
]
T5Option = Annotated[
    bool | None, _option("--t5/--no-t5", panel=_MODEL, shown="t5", help="Leave the third text encoder of an SD3 pipeline out.")
]
VAEOption = Annotated[
    str | None,
    _option(
        "--vae",
        panel=_MODEL,
        shown="the pipeline's own",
        help="A VAE's folder or hub id, to make pictures of a class-label model's latents.",
    ),
]
WeakOption = Annotated[
    str | None,
    _option("--weak", panel=_MODEL, help="A smaller or less trained network for the rule ag: a file, a folder or a hub id."),
]
AdapterOption = Annotated[
    str | None,
    _option(
        "--adapter",
        panel=_MODEL,
        help="Guidance in the weights: a name (sgg, of the herbarium), a file or folder of segue distill; for an SD3 a LoRA.",
    ),
]
AdapterScaleOption = Annotated[
    float | None, _option("--adapter-scale", panel=_MODEL, help="The strength of an adapter that takes one.")
]
DeviceOption = Annotated[
    str | None, _option("--device", panel=_MODEL, help="cpu, cuda, cuda:N or mps; by default CUDA where there is one.")
]
DtypeOption = Annotated[
    str | None,
    _option("--dtype", panel=_MODEL, help="float32, bfloat16 or float16; by default bfloat16 on CUDA, else float32."),
]
LinearsOption = Annotated[
    str | None,
    _option(
        "--linears",
        panel=_MODEL,
        shown=DEFAULT_LINEARS,
        help="native, or fp8: the large matrices of the blocks, approximately.",
    ),
]

AttentionOption = Annotated[
    str | None,
    _option(
        "--attention",
        panel=_MODEL,
        shown="the model's own",
        help="Of a DiT or SiT: full, or probsparse, approximately; with budgets probsparse:queries=40,keys=40.",
    ),
]

UpscaleOption = Annotated[
    str | None,
    _option(
        "--upscale",
        panel=_OUT,
        help="Make the pictures larger once they are drawn: 2 (the herbarium's own enhancer), or the file of an enhancer.",
    ),
]

RuleOption = Annotated[
    str | None,
    _option(
        *RULE_NAMES,
        panel=_RULE,
        shown=DEFAULT_RULE,
        help=RULE_HELP,
    ),
]
RulesOption = Annotated[
    list[str] | None,
    _option(*RULE_NAMES, panel=_RULE, shown="none, cfg, slg, sgg", help="A rule as in segue sample; repeat the option."),
]
ScaleOption = Annotated[str | None, _option("--scale", panel=_RULE, help="Scale of cfg and sgg; 1 is off.")]
WeightOption = Annotated[str | None, _option("--weight", panel=_RULE, help="Weight of the weak branch; 0 is off.")]
LayersOption = Annotated[str | None, _option("--layers", panel=_RULE, help="Perturbed blocks, counted from 0: 7,8 or 7-9.")]
SwitchOption = Annotated[
    str | None, _option("--switch", panel=_RULE, help="Noise level where sgg changes over, or fraction:0.5.")
]
ExitOption = Annotated[str | None, _option("--exit-layer", panel=_RULE, help="Blocks before the early-exit head.")]
WindowOption = Annotated[
    str | None,
    _option("--window", panel=_RULE, help="Where the rule acts: sigma:0.2,0.8 or fraction:0,0.5 or steps:1,14."),
]
DeltaOption = Annotated[
    str | None, _option("--delta", panel=_RULE, help="Adds DELTA (1 - 2 p), p from 0 to 1 over the steps of the window.")
]
RefreshOption = Annotated[
    str | None,
    _option("--refresh", panel=_RULE, help="Evaluate guidance branches at every N-th call only, approximately; 1 is exact."),
]

CalibrationOption = Annotated[
    str | None,
    _option(
        "--calibration",
        panel=_RULE,
        help="Approximately, with a known error: a file of segue calibrate, or sgg for the herbarium's own sgg.",
    ),
]

StepsOption = Annotated[int | None, _option("--steps", panel=_RUN, shown=str(DEFAULT_STEPS), help="Steps of the solver.")]
SolverOption = Annotated[
    str | None,
    _option(
        "--solver",
        panel=_RUN,
        shown=DEFAULT_SOLVER,
        help="euler, heun, ab2, ddim, dpm++2m, dpm++3m, res_2m, res_3m, unipc, deis; with noise dpm++2m-sde, dpm++3m-sde, "
        "dpm++sde, euler-ancestral, lcm, euler-maruyama, or ddpm for a DiT; options in brackets: 'unipc(order=3)'.",
    ),
]
ScheduleOption = Annotated[
    str | None,
    _option(
        "--schedule",
        panel=_RUN,
        shown="the model's own",
        help="native, linear, shift, shift=VALUE, resolution, karras, exponential, beta.",
    ),
]
ClassesOption = Annotated[
    str | None,
    _option("--classes", "--labels", panel=_RUN, help="all, numbers, ranges, names or first words of names: 0,3,8-11."),
]
SeedsOption = Annotated[
    str | None,
    _option(
        "--seeds",
        panel=_RUN,
        shown="0",
        help="A list or range, one for each picture, or one number that counts up: 5, 6, ...",
    ),
]
CountOption = Annotated[
    int | None,
    _option("--count", "--num-images", panel=_RUN, shown="1", help="Pictures of each class or prompt; in a file .npz, of all."),
]
MaxBatchOption = Annotated[int | None, _option("--max-batch", panel=_RUN, shown="all", help="Pictures drawn at once.")]
FiniteOption = Annotated[
    bool | None,
    _option("--check-finite", panel=_RUN, help="Stop at the first call whose result is not finite, and name the branch."),
]
FromOption = Annotated[
    Path | None,
    _option("--from", panel=_RUN, help="Draw a picture again, from the record inside its PNG file; with -g by another rule."),
]
FromSheetOption = Annotated[
    Path | None, _option("--from", panel=_RUN, help="Draw a sheet again, from the record inside its PNG file.")
]
PromptOption = Annotated[
    list[str] | None,
    _option("--prompt", "-p", panel=_PROMPT, help="What to draw, for SD3 models; repeat the option for several pictures."),
]
NegativeOption = Annotated[
    list[str] | None,
    _option("--negative-prompt", panel=_PROMPT, shown="empty", help="What to avoid, where the rule has cfg: one, or one each."),
]
HeightOption = Annotated[
    int | None, _option("--height", panel=_PROMPT, shown="the model's own", help="Height in pixels, for SD3 models.")
]
WidthOption = Annotated[
    int | None, _option("--width", panel=_PROMPT, shown="the model's own", help="Width in pixels, for SD3 models.")
]
ImageOption = Annotated[Path | None, _option("--image", panel=_PROMPT, help="A picture to start from, instead of noise.")]
StrengthOption = Annotated[
    float | None,
    _option("--strength", panel=_PROMPT, shown=str(DEFAULT_STRENGTH), help="How much of it to redraw, up to 1 (all)."),
]

OutOption = Annotated[
    Path | None, _option("--out", "-o", panel=_OUT, shown="the folder out", help="A folder, one PNG file, or one file .npz.")
]
SheetOption = Annotated[Path | None, _option("--out", "-o", panel=_OUT, shown="out/compare.png", help="The PNG file to write.")]
RankOption = Annotated[
    int | None, _option("--rank", panel=_OUT, shown="0", help="Which shard of a file .npz this process draws, from 0.")
]
WorldOption = Annotated[
    int | None, _option("--world", panel=_OUT, shown="1", help="How many shards; the last to end makes the file.")
]
GridOption = Annotated[
    bool | None, _option("--grid/--no-grid", panel=_OUT, shown="grid", help="Also all pictures in one grid.png.")
]
OutputOption = Annotated[
    str | None,
    _option("--output", panel=_OUT, shown="pil", help="pil: pictures; latent: a safetensors file each, which needs no VAE."),
]
ColumnsOption = Annotated[int | None, _option("--columns", panel=_OUT, min=1, help="Columns of the grid.")]
ZoomOption = Annotated[
    int | None, _option("--zoom", panel=_OUT, min=1, shown="to about 96 pixels", help="Enlargement in grids and sheets.")
]
ForceOption = Annotated[
    bool, _option("--force", panel=_OUT, help="Write over files that are there; else they stay, and new names get a number.")
]
VerboseOption = Annotated[
    bool,
    _option("--verbose", panel=_OUT, help="Every version, attention backend and operation, with why its kernel was chosen."),
]
JsonOption = Annotated[bool, _option("--json", panel=_OUT, help="Print a JSON summary for machines.")]


@dataclass(frozen=True)
class Source:
    """Which model, where and in which precision; None is the default."""

    model: str | None
    family: str | None = None
    device: str | None = None
    dtype: str | None = None
    linears: str | None = None
    heads: int | None = None
    branch_head: int | None = None
    revision: str | None = None
    variant: str | None = None
    t5: bool | None = None
    vae: str | None = None
    weak: str | None = None
    models: Mapping[str, str] | None = None  # further networks of a record, by name
    adapter: str | None = None
    adapter_scale: float | None = None
    attention: str | None = None
    upscale: str | None = None  # of the pictures, once they are drawn

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Source":
        """Those of the options of a command, by the names of its arguments, that say which model is meant and how."""
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})

    @property
    def name(self) -> str:
        """The model that is meant."""
        return self.model or DEFAULT_MODEL

    @property
    def how(self) -> dict[str, Any]:
        """Keywords of :meth:`Engine.from_pretrained` that say how the model is read."""
        file = {"family": self.family, "heads": self.heads, "exit_layer": self.branch_head}
        return file | {
            "revision": self.revision,
            "variant": self.variant,
            "t5": self.t5 is not False,
            "vae": self.vae,
            "models": self.further,
            "adapter": self.adapter,
            "adapter_scale": self.adapter_scale,
            "attention": self.attention,
        }

    @property
    def further(self) -> dict[str, str]:
        """Where further networks are, by name."""
        return dict(self.models or {}) | ({} if self.weak is None else {WEAK: self.weak})


@dataclass(frozen=True)
class RunOptions:
    """What to draw and how; None is the default."""

    steps: int | None = None
    solver: str | None = None
    schedule: str | None = None
    classes: str | None = None
    seeds: str | None = None
    count: int | None = None
    max_batch: int | None = None
    check_finite: bool | None = None


@dataclass(frozen=True)
class PromptOptions:
    """What to draw for a model that takes prompts; None is not given."""

    prompt: list[str] | None = None
    negative_prompt: list[str] | None = None
    height: int | None = None
    width: int | None = None
    image: Path | None = None
    strength: float | None = None


@dataclass(frozen=True)
class Output:
    """Where pictures go and how they are laid out; None is the default."""

    out: Path | None = None
    grid: bool | None = None
    columns: int | None = None
    zoom: int | None = None
    json: bool = False
    kind: str | None = None
    force: bool = False


@dataclass(frozen=True)
class RuleOptions:
    """A rule as text, and flags that belong to it, by the name of the rule's option."""

    text: str | None
    flags: dict[str, str]
    calibration: str | None = None

    @classmethod
    def of(cls, text: str | None, calibration: str | None = None, **flags: str | None) -> "RuleOptions":
        return cls(text, {name: value for name, value in flags.items() if value is not None}, calibration)
