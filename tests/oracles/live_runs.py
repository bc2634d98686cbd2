"""An engine on a live pipeline beside a plain pipeline with equal weights: the same changes to both, the same pictures."""

import torch
from attached_runs import draw, relative_error
from counted_rows import counted_rows, planned_rows
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, Engine, SkipLayer, Window
from segue.engine.prompts.engine import PromptRun
from tests.tolerances import ATTACHED_RUN

PROMPTS, NEGATIVE, SEEDS, STEPS = ["leaf", "bee"], "dull", [3, 4], 4
SLG = {"skip_guidance_layers": [1, 4], "skip_layer_guidance_scale": 2.0, "skip_layer_guidance_stop": 0.7}
RULE = CFG(4.5) + SkipLayer(2.0, (1, 4), window=Window.steps(2, 3))  # of 4: call i with .04 < i < 2.8, counted from 0
PACKED = "path: packed weights, shared with the pipeline"
MODULES = "path: the transformer's own modules, because "


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def plain_draw(pipe, **call) -> torch.Tensor:
    """The latents that diffusers draws."""
    common = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": 4.5, "num_inference_steps": STEPS}
    return draw(pipe, **(common | SLG | {"generator": generators} | call))


def generate(engine, rule=RULE, **options) -> PromptRun:
    """The same run by an engine."""
    return engine.generate(
        PROMPTS, NEGATIVE, rule, **({"steps": STEPS, "seeds": SEEDS, "max_sequence_length": T5_TOKENS} | options)
    )


class Twins:
    """A plain pipeline, and one with an engine on it."""

    def __init__(self, kind: str = "sd3.5-medium", **settings):
        self.plain, self.live = (tiny_pipeline(kind, seed=21, **settings) for _ in range(2))
        self.engine = Engine.from_pipe(self.live)

    def both(self, change) -> None:
        """Do something to the pipelines."""
        for pipe in (self.plain, self.live):
            change(pipe)

    def check(self, path: str) -> torch.Tensor:
        """Both draw the same; the engine says that it takes ``path``, takes it, and runs the rows of the plan."""
        wanted = plain_draw(self.plain)
        said = self.engine.explain().splitlines()[0]
        with counted_rows() as rows:
            run = generate(self.engine)
        assert relative_error(run.latents, wanted) < ATTACHED_RUN
        assert rows == planned_rows(run.plan, len(PROMPTS)) and sum(rows) == run.plan.cost.blocks * len(PROMPTS)
        assert said == PACKED if path == "packed" else said.startswith(MODULES) and path in said, said
        assert self.engine.explain().splitlines()[0] == said
        return run.latents
