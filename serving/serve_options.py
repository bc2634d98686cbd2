"""``segue serve``: what the command accepts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.engine.cli import options as o

from .ray_options import PANEL, AddressOption, CpusOption, GpusOption, RayOption, ray_options

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
EXTRA = ("fastapi", "uvicorn", "prometheus_client")
_ADDRESS, _LIMITS = "Address", "Limits"


def _limit(name: str, shown: str, text: str) -> Any:
    return typer.Option(name, rich_help_panel=_LIMITS, show_default=shown, help=text)


ServedRule = Annotated[
    str | None,
    typer.Option(
        *o.RULE_NAMES, rich_help_panel="Guidance", show_default=o.DEFAULT_RULE, help="The rule of requests that name none."
    ),
]
HostOption = Annotated[
    str, typer.Option("--host", rich_help_panel=_ADDRESS, help="The address to listen at; this machine alone.")
]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, rich_help_panel=_ADDRESS, help="0 takes a free one.")]
NameOption = Annotated[
    str | None,
    typer.Option("--name", rich_help_panel=_ADDRESS, show_default="the model's", help="What requests call the model."),
]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--api-keys",
        rich_help_panel=_ADDRESS,
        show_default="SEGUE_API_KEY",
        help="A file of API keys, one on each line; without any, none is asked for.",
    ),
]
ProxyOption = Annotated[
    str | None,
    typer.Option("--proxy", rich_help_panel=_ADDRESS, help="Address of a proxy whose X-Forwarded-For names the client."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", rich_help_panel=_ADDRESS, help="No line for each request.")]
SlotsOption = Annotated[int | None, _limit("--slots", "8", "Samples that share a step.")]
QueueOption = Annotated[int | None, _limit("--queue", "64", "Requests that wait for a slot; more are refused with 429.")]
RateOption = Annotated[float | None, _limit("--rate", "any", "Requests a minute of one client, key or address.")]
DeadlineOption = Annotated[float | None, _limit("--deadline", "none", "Seconds that a request may take.")]
DrainOption = Annotated[
    int | None, _limit("--drain", "any", "Seconds that accepted requests have when the server is told to stop.")
]
SendOption = Annotated[
    float | None, _limit("--send-seconds", "30", "Seconds that a client has to take 64 KiB of its answer, or the rest of it.")
]
BodyOption = Annotated[int | None, _limit("--max-body", "65536", "Bytes of a request.")]
PixelsOption = Annotated[
    int | None, _limit("--max-pixels", "twice the model's own", "Pixels of a picture, width times height.")
]
MaxStepsOption = Annotated[int | None, _limit("--max-steps", "200", "Steps of a request.")]
MaxImagesOption = Annotated[int | None, _limit("--max-images", "10", "Pictures of a request.")]

ReplicasOption = Annotated[
    str | None,
    typer.Option("--replicas", rich_help_panel=PANEL, show_default="1", help="Processes: a number, or 1-8 as requests wait."),
]


def serve(
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    t5: o.T5Option = None,
    vae: o.VAEOption = None,
    weak: o.WeakOption = None,
    adapter: o.AdapterOption = None,
    adapter_scale: o.AdapterScaleOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    linears: o.LinearsOption = None,
    attention: o.AttentionOption = None,
    guidance: ServedRule = None,
    host: HostOption = DEFAULT_HOST,
    port: PortOption = DEFAULT_PORT,
    name: NameOption = None,
    api_keys: KeysOption = None,
    proxy: ProxyOption = None,
    quiet: QuietOption = False,
    slots: SlotsOption = None,
    queue: QueueOption = None,
    rate: RateOption = None,
    deadline: DeadlineOption = None,
    drain: DrainOption = None,
    send_seconds: SendOption = None,
    max_body: BodyOption = None,
    max_pixels: PixelsOption = None,
    max_steps: MaxStepsOption = None,
    max_images: MaxImagesOption = None,
    ray: RayOption = False,
    replicas: ReplicasOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    address: AddressOption = None,
) -> None:
    """Serve pictures over HTTP, by OpenAI's images API, with a page at / to try it: by default of the bundled model.

    Samples of several requests share the steps of one network. Needs the extra serve: pip install 'segue\\[serve]'.

    [bold]Examples[/bold]

    segue serve

    segue serve --model sd3.5-medium/ --guidance cfg --slots 4 --deadline 120

    segue serve --host 0.0.0.0 --port 80 --api-keys keys.txt --rate 60

    segue serve --model sd3.5-medium/ --ray --replicas 1-8 --gpus 1 --address auto
    """
    require_extra()
    given = ray_options(ray, replicas=replicas, cpus=cpus, gpus=gpus, address=address)
    from .command import read_keys, serve_model

    source = o.Source.of(locals())
    options = {
        "name": name,
        "guidance": guidance,
        "keys": read_keys(api_keys),
        "slots": slots,
        "queue": queue,
        "rate": rate,
        "deadline": deadline,
        "send_seconds": send_seconds,
        "max_body": max_body,
        "max_pixels": max_pixels,
        "max_steps": max_steps,
        "max_images": max_images,
    }
    if given is None:
        serve_model(source, host, port, proxy, drain, quiet, options)
    else:
        from .ray_command import serve_model_on_ray

        serve_model_on_ray(source, host, port, proxy, drain, options, given)


def require_extra() -> None:
    """Raise ``ValueError`` where what the server is made of is not installed."""
    from importlib.util import find_spec

    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ValueError(f"serving needs {', '.join(missing)}, which is not installed: pip install 'segue[serve]'")
