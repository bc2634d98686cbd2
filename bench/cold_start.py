"""One cold start in a process of its own: ``python -m segue.bench.cold_start`` prints the seconds of every stage as JSON."""

import argparse
import json
import time

VARIANTS = ("segue", "diffusers eager", "diffusers compiled")


def main() -> None:
    """Import, build with random weights, draw a batch twice; the second draw shows what a warm one takes."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    for name in ("--model", "--device", "--dtype", "--rule"):
        parser.add_argument(name, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    options = parser.parse_args()
    stages = {}

    def finish(stage: str) -> None:
        nonlocal start
        now = time.perf_counter()
        stages[stage], start = now - start, now

    draw, wait = _build(options, finish)
    for stage in ("first draw", "second draw"):
        draw()
        wait()
        finish(stage)
    print(json.dumps(stages))


def _build(options: argparse.Namespace, finish):
    import torch

    from segue.engine.device import resolve_device, resolve_dtype

    from .cases import BenchModel, Workload

    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    model = BenchModel.parse(options.model)
    if options.variant == "segue":
        finish("import")
        workload = Workload.make(model, options.batch, device, dtype)
        draw = workload.sampler(workload.plan(model.rule(options.rule), options.calls))
    else:
        from .diffusers_loop import DiffusersLoop, diffusers_module

        finish("import")
        module = diffusers_module(model.spec, device, dtype)
        if options.variant == "diffusers compiled":
            for block in module.transformer_blocks:
                block.compile()
        draw = DiffusersLoop(module, model, options.batch, options.calls, device, dtype).draw(options.rule)
    wait()
    finish("build")
    return draw, wait


if __name__ == "__main__":
    main()
