"""``segue encode``: images into the latents that a class-label transformer is trained on."""

from pathlib import Path
from typing import Annotated

import typer


def encode(
    data: Annotated[Path, typer.Argument(help="A folder of images per class, or a CSV or TSV of images and classes.")],
    vae: Annotated[str, typer.Option(help="Folder or hub id of an AutoencoderKL, or of a pipeline that holds one.")],
    out: Annotated[Path, typer.Option(help="Folder of the latents; of an earlier run: what is done there is kept.")],
    size: Annotated[
        int | None, typer.Option(help="Cut images to squares of this many pixels; default as they are, all alike.")
    ] = None,
    tier: Annotated[
        str | None, typer.Option(help="Superclasses: a level of folders above the class, or a table's column; 0: none.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps; default CUDA where there is one.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16, of the VAE; moments are stored in float32.")
    ] = "float32",
    workers: Annotated[int, typer.Option(help="Processes that read images; 0 reads them between the batches.")] = 0,
    images: Annotated[bool, typer.Option("--images", help="Also write the images as they were cut.")] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave files out that cannot be read, instead of stopping.")
    ] = False,
) -> None:
    """Write images as latents, mean and standard deviation each, with their classes.

    The layout is REPA's: vae-sd/*/img-mean-std-*.npy and vae-sd/dataset.json, written when all are done.
    A run that was stopped goes on by the same command.

    [bold]Example[/bold]

    segue encode flowers/ --vae sd-vae-ft-ema/ --size 256 --out flowers-latents
    """
    from segue.engine.adapters.vae import Decoder
    from segue.engine.device import resolve_device, resolve_dtype
    from segue.engine.numeric_input import counting_number
    from segue.engine.running.progress import progress_bar
    from segue.engine.sources import local_vae

    from .encoding import Encoding
    from .open_source import describe, open_images

    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    counting_number(batch_size, "batch-size")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    source = open_images(data, size, tier)
    decoder = Decoder.read(local_vae(vae), precision, place)
    encoding = Encoding(source, decoder, out, batch_size, workers, images, skip_unreadable)
    pending = encoding.open()
    for line in describe(source):
        typer.echo(line)
    if len(pending) < len(source):
        typer.echo(f"{len(source) - len(pending):,} are done already")
    with progress_bar("encode", len(pending), of="image") as advance:
        left_out = encoding.run(pending, advance)
    for name in left_out:
        typer.echo(f"left out: {name}", err=True)
    channels, height, width = encoding.moments_shape
    typer.echo(f"{out}: {len(source) - len(left_out):,} latents of {channels // 2} x {height} x {width}")
