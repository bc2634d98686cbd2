"""One cold start in a process of its own: ``python -m segue.bench.cold_start`` prints the seconds of every stage as JSON.

``import`` is what a program imports before it can do anything, ``build`` makes the weights that a user would load, ``first
draw`` is everything from there to the images: setting up, compiling, drawing; ``second draw`` shows what a warm one takes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

VARIANTS = ("segue", "diffusers eager", "diffusers compiled")
STAGES = ("import", "build", "first draw", "second draw")

Finish = Callable[[str], None]


def main(arguments: list[str] | None = None) -> None:
    """Draw a batch twice and print the stages; exits with one line if what was drawn is not finite."""
    start = time.perf_counter()
    options = parse(arguments)
    if options.keep_memory:
        from .allocator import keep_freed_memory

        keep_freed_memory()
    stages: dict[str, float] = {}

    def finish(stage: str) -> None:
        nonlocal start
        now = time.perf_counter()
        stages[stage], start = now - start, now

    load = load_segue if options.variant == "segue" else load_diffusers
    set_up, wait = load(options, finish)
    draw = set_up()
    for stage in STAGES[2:]:
        drawn = draw()
        wait()
        finish(stage)
    if not drawn.isfinite().all():
        sys.exit(f"{options.variant} drew numbers that are not finite")
    print(json.dumps(stages))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the process; none has a default, so that nothing is measured that the rows do not say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    for name in ("--model", "--device", "--dtype", "--rule"):
        parser.add_argument(name, required=True)
    for name in ("--batch", "--calls", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, required=True)
    return parser.parse_args(arguments)


def load_segue(options: argparse.Namespace, finish: Finish) -> tuple[Callable, Callable]:
    """Import Segue and make a network; returns what sets a draw up, and what waits for the device."""
    from segue.engine.core import EngineCore

    from .cases import Workload

    finish("import")
    model, device, dtype, wait = _resolve(options)
    networks = model.build(device)
    wait()
    finish("build")

    def set_up() -> Callable:
        workload = Workload(model, EngineCore(*networks, device, dtype), options.batch)
        return workload.sampler(workload.plan(model.rule(options.rule), options.calls))

    return set_up, wait


def load_diffusers(options: argparse.Namespace, finish: Finish) -> tuple[Callable, Callable]:
    """As :func:`load_segue`; Segue's own modules, which make the weights, are not imported in the peer's time."""
    # diffusers imports a module when one of its names is first asked for: these are what the loop below needs
    from diffusers import DiTTransformer2DModel, SD3Transformer2DModel  # noqa: F401

    finish("import")
    from .diffusers_loop import DiffusersLoop
    from .diffusers_modules import compile_blocks, diffusers_module

    model, device, dtype, wait = _resolve(options)
    module = diffusers_module(model.spec, device, dtype)
    wait()
    finish("build")

    def set_up() -> Callable:
        if options.variant == "diffusers compiled":
            compile_blocks(module)
        return DiffusersLoop(module, model, options.batch, options.calls, device, dtype).draw(options.rule)

    return set_up, wait


def _resolve(options: argparse.Namespace) -> tuple:
    """Model, device, dtype and what waits for the device; the threads are set."""
    import torch

    from segue.engine.device import resolve_device, resolve_dtype

    from .cases import BenchModel

    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    return BenchModel.parse(options.model), device, resolve_dtype(options.dtype, device), wait


if __name__ == "__main__":
    main()
