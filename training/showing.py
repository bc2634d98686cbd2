"""A run from its first step to its last, shown: the bar, previews, the curve, and Ctrl-C as an orderly end."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import Trainer


def show_run(trainer: "Trainer", vae: Path | None = None) -> int:
    """Train until the end or a signal; returns the exit code.

    Only the first of several processes shows anything.  ``vae`` decodes previews of latents, which
    :func:`.preview.check_previews` has passed.
    """
    from rich.console import Console

    from .interrupt import StopRequest
    from .progress import TrainingDisplay

    every, first = trainer.settings.preview_every, trainer.processes.first
    decoder = _decoder(vae, trainer.settings.device)
    console = Console(stderr=True, quiet=not first)
    with StopRequest() as stop, TrainingDisplay(trainer, console) as display:

        def after_step(trainer, losses) -> bool:
            display.show(trainer, losses)
            if every and trainer.step % every == 0:
                _draw(trainer, decoder)
            return stop.signal is None

        finished = trainer.run(after_step)
    if first:
        _draw_curve(trainer)
    end = "done" if finished else "stopped; continue with --resume"
    text = f"{end}: step {trainer.step}, {trainer.seconds:.0f} s of training, weights in {trainer.folder.path}"
    console.print(text, soft_wrap=True)
    return 0 if finished else stop.exit_code


def _decoder(vae: Path | None, device: str):
    """The VAE of previews, from its folder or that of a pipeline."""
    import torch

    from segue.engine.adapters.vae import Decoder

    return None if vae is None else Decoder.read(vae, torch.float32, torch.device(device), None)


def _draw(trainer: "Trainer", decoder) -> None:
    from segue.engine.files import whole_file

    from .preview import preview

    path = trainer.folder.preview(trainer.step)
    path.parent.mkdir(exist_ok=True)
    with trainer.average.in_place():
        sheet = preview(trainer.model, decoder)
    with whole_file(path) as part:
        sheet.save(part, format="png")
    _draw_curve(trainer)


def _draw_curve(trainer: "Trainer") -> None:
    """The curve of the log, where matplotlib is installed and there is a row."""
    from .loss_curve import can_draw, draw_curve

    rows = trainer.folder.log_rows()
    if rows and can_draw():
        draw_curve(rows, trainer.spec.name, trainer.folder.curve)
