"""``segue bench serve``: what the command accepts.

Modules that import torch are imported inside the command, so that ``segue --help`` does not wait for them.
"""

from typing import Annotated

import typer

from .. import options as o


def register(bench: typer.Typer) -> None:
    """Add the command to ``segue bench``."""
    bench.command()(serve)


def serve(
    model: Annotated[
        str | None, typer.Option(help="As of the other suites; default herbarium, and sit-b/2 with --overhead.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of a round.")] = 200,
    rate: Annotated[float, typer.Option(help="How fast they come, as a share of what request-level batching can serve.")] = 0.7,
    slots: Annotated[int, typer.Option(help="Requests at once, of both servers that batch.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the first round's requests.")] = 0,
    rounds: Annotated[int, typer.Option(help="Sequences of requests, each to every server.")] = 1,
    overhead: Annotated[
        bool, typer.Option("--overhead", help="Measure the time of a tick outside the networks, and nothing else.")
    ] = False,
    dtype: o.DtypeOption = None,
    device: o.DeviceOption = None,
    repetitions: Annotated[int, typer.Option(help="Timings of each kind of request alone; ticks with --overhead.")] = 5,
    limit_minutes: o.LimitOption = 30.0,
    threads: o.ThreadsOption = None,
    out: o.OutOption = None,
    resume: o.ResumeOption = True,
    keep_memory: o.MemoryOption = True,
) -> None:
    """Batches of steps against batches of requests and none: latency and throughput of mixed requests that come at random.

    All three servers get the same requests at the same times.  Latencies count from the planned arrival.

    Example: segue bench serve --requests 200 --rounds 3 --out bench/results/cpu.jsonl
    """
    from .runs import run_load
    from .settings import LoadSettings

    options = {"dtype": dtype, "device": device, "repetitions": repetitions, "limit_minutes": limit_minutes}
    load = None if overhead else LoadSettings(requests, rate, slots, seed, rounds)
    if code := run_load(model, load, out, resume, threads, keep_memory, **options):
        raise typer.Exit(code)
