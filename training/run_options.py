"""Options that the commands which train share, and what stands for those that are not given."""

from typing import Annotated, Any

import typer

NETWORK, OBJECTIVE, LENGTH, MACHINE = "Network and data", "Objective", "Length and optimiser", "Machine"


def option(*names: str, panel: str | None = None, **settings: Any) -> Any:
    """An option in a panel of the help."""
    return typer.Option(*names, rich_help_panel=panel, **settings)


ResumeOption = Annotated[bool | None, option("--resume/--fresh", help="Continue the run in the folder / replace it.")]
StepsOption = Annotated[int | None, option("--steps", panel=LENGTH, help="Optimiser steps.")]
MinutesOption = Annotated[
    float | None, option("--minutes", panel=LENGTH, help="End after this much training time; 0: no limit.")
]
MicroBatchesOption = Annotated[
    int | None,
    option("--micro-batches", panel=LENGTH, help="Parts of a batch, whose gradients are added up; default one a process."),
]
LearningRateOption = Annotated[float | None, option("--learning-rate", panel=LENGTH, help="Peak learning rate.")]
WarmupOption = Annotated[int | None, option("--warmup", panel=LENGTH, help="Steps up to the peak.")]
EMAOption = Annotated[float | None, option("--ema", panel=LENGTH, help="Decay of the average of what is trained.")]
SeedOption = Annotated[int | None, option("--seed", panel=LENGTH, help="Of what is new, the data and the noise.")]
DeviceOption = Annotated[
    str | None, option("--device", panel=MACHINE, help="cpu, cuda or cuda:N; default cuda if there is one.")
]
DtypeOption = Annotated[str | None, option("--dtype", panel=MACHINE, help="bfloat16 (autocast) or float32.")]
CheckpointOption = Annotated[int | None, option("--checkpoint-every", help="Steps between checkpoints.")]
SnapshotOption = Annotated[int | None, option("--snapshot-every", help="Steps between weights that are kept; 0: none.")]


def given(**values: Any) -> dict[str, Any]:
    """Those of ``values`` that were given."""
    return {name: value for name, value in values.items() if value is not None}


def default_device() -> str:
    """``cuda`` where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
