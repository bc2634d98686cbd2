"""Peak memory of an attached pipeline: weights, static buffers, modulation table and temporaries, storage by storage.

The size of SD3.5-medium is counted on the meta device, where tensors have storages but no memory.  A narrow network of the
same depth that really runs shows that this count is right on both sides, loading and packing included.
"""

import pytest
import torch
from attached_runs import PATHS, draw, draw_attached
from live_storages import LiveStorages, meta_peak, reachable_bytes, storage_bytes, tensors_of
from sweeps import first_fast
from tiny_sd3 import tiny_pipeline
from torch import nn

from segue import CFG, Guidance, SkipLayer, Window
from segue.engine.planning.compile import compile_plan
from segue.engine.planning.plan import Plan
from segue.engine.planning.schedule import flow_shift
from segue.engine.planning.solvers import VELOCITY
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey
from segue.models.mmdit import MMDiT
from segue.models.sd3_sizes import sd3_spec

BOUND = 1.05  # of the weights and activations of the plain pipeline under CFG
COUNT = 0.01  # of the weights: the pipeline's own few tensors (prompts, latents, levels), which the count leaves out
LAYERS = (7, 8, 9)


def rules(steps: int) -> dict[str, Guidance]:
    """CFG, and the published recipe: CFG in the first half of the steps, skipped layers in the second."""
    half = steps // 2
    weak = SkipLayer(3.0, LAYERS, window=Window.steps(half + 1, steps))
    return {"cfg": CFG(4.5), "sgg": CFG(4.5, window=Window.steps(1, half)) + weak}


def on_meta(make, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        return make().to(dtype).eval()


def plain_peak(transformer: nn.Module, plan: Plan, batch: int, dtype: torch.dtype) -> int:
    """Most bytes alive in one call of diffusers' transformer on a classifier-free batch; weights and inputs included."""
    config, rows = transformer.config, 2 * batch
    shapes = {
        "hidden_states": (rows, config.in_channels, plan.height, plan.width),
        "encoder_hidden_states": (rows, plan.spec.text_tokens, config.joint_attention_dim),
        "pooled_projections": (rows, config.pooled_projection_dim),
        "timestep": (rows,),
    }
    inputs = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    return meta_peak([*tensors_of(transformer), *inputs.values()], lambda: transformer(**inputs, return_dict=False))


def attached_peak(plan: Plan, batch: int, dtype: torch.dtype) -> int:
    """Most bytes alive in any step of a program of ours; weights, static buffers and tables included."""
    model = on_meta(lambda: MMDiT(plan.spec), dtype)
    program = Program(ProgramKey.of(plan, batch), plan, {"main": model}, torch.device("meta"))
    held = tensors_of(model, program, program.combination, *program.rows.values())
    return max(meta_peak(held, lambda live=live: program.step(live)) for live in plan.live_sets)


@pytest.fixture(scope="module")
def published():
    """diffusers' transformer with the configuration of SD3.5-medium."""
    from diffusers import SD3Transformer2DModel

    spec = sd3_spec("sd3.5-medium")
    config = {
        "sample_size": spec.height,
        "num_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "attention_head_dim": spec.head_dim,
        "caption_projection_dim": spec.dim,
        "pos_embed_max_size": spec.position_size,
        "dual_attention_layers": spec.dual_layers,
        "qk_norm": "rms_norm",
    }
    return on_meta(lambda: SD3Transformer2DModel(**config), torch.bfloat16)


@pytest.mark.parametrize(
    ("rule", "pixels", "batch"),
    [
        ("sgg", 1024, 1),
        *(pytest.param(rule, 1024, batch, marks=pytest.mark.slow) for rule, batch in (("cfg", 1), ("sgg", 4), ("sgg", 8))),
        *(pytest.param("sgg", 512, batch, marks=pytest.mark.slow) for batch in (2, 8, 16)),  # whose table is a ring from 8 on
    ],
)
def test_at_the_size_of_sd35_medium(published, rule, pixels, batch):
    """28 steps in bf16; text encoders and VAE are left out, which makes the bound tighter."""
    plan = compile_plan(rules(28)[rule], flow_shift(28), VELOCITY, sd3_spec("sd3.5-medium", pixels))
    plain = plain_peak(published, plan, batch, torch.bfloat16)
    assert attached_peak(plan, batch, torch.bfloat16) <= BOUND * plain


# of the depth and with the dual blocks of SD3.5-medium, 96 wide
NARROW = {
    "num_layers": 24,
    "dual_attention_layers": tuple(range(13)),
    "attention_head_dim": 48,
    "caption_projection_dim": 96,
    "sample_size": 28,
    "pos_embed_max_size": 24,
}
CALL = {"guidance_scale": 4.5, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(seed=9, **NARROW)


def components(pipe) -> list[torch.Tensor]:
    return tensors_of(*(component for component in pipe.components.values() if isinstance(component, nn.Module)))


@pytest.fixture(scope="module")
def plain(pipe) -> int:
    """Most bytes alive in a run of the plain pipeline, its components included."""
    with LiveStorages(components(pipe)) as storages:
        draw(pipe, **CALL)
    return storages.peak


def real_attached_peak(pipe, rule, path) -> tuple[int, Plan]:
    """Most bytes alive from attaching to detaching, with a run between them; and the plan of the run."""
    with LiveStorages(components(pipe)) as storages:
        run = draw_attached(pipe, rule, path, **CALL)
    return storages.peak, run.plan


@pytest.mark.parametrize("rule", first_fast(["sgg", "cfg"]))
def test_the_count_without_computing_is_that_of_a_real_run(pipe, plain, rule):
    """Packing, loading and the pipeline around the steps never hold more than a step does."""
    weights = storage_bytes(tensors_of(pipe.transformer))
    others = storage_bytes(components(pipe)) - weights
    transformer = on_meta(lambda: type(pipe.transformer).from_config(pipe.transformer.config), torch.float32)
    attached, plan = real_attached_peak(pipe, rules(2)[rule], "packed")
    assert abs(plain - others - plain_peak(transformer, plan, 1, torch.float32)) <= COUNT * weights
    assert abs(attached - others - attached_peak(plan, 1, torch.float32)) <= COUNT * weights


def test_a_run_through_its_own_modules(pipe, plain):
    attached, _ = real_attached_peak(pipe, rules(2)["sgg"], "modules")
    assert attached <= BOUND * plain


@pytest.mark.parametrize("path", PATHS)
def test_detaching_gives_everything_back(pipe, path):
    draw(pipe, **CALL)
    before = reachable_bytes()
    draw_attached(pipe, rules(2)["sgg"], path, **CALL)
    assert reachable_bytes() <= before + 0.001 * storage_bytes(tensors_of(pipe.transformer))
