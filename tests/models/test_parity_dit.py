"""Our DiT and SiT against diffusers' DiT and against the official equations: random weights everywhere, fp32."""

import pytest
import torch
from clocks import at_times
from official_dit import forward, guided, patches_to_image, random_state

from segue import CFG, Engine, Schedule, Unguided
from segue.models.registry import make_rows
from segue.models.rows import Path, RowLayout
from segue.models.weights import load_network

diffusers = pytest.importorskip("diffusers")

# Absolute, on outputs of unit size: some 60 fp32 products and norms in a row, each rounding to 6e-8, in another order.
PARITY = 2e-5
# Relative to the largest latent, after a whole run: the error of one forward, carried through up to 28 calls, and the fp32
# alphas of the diffusers scheduler.
RUN_PARITY = 1e-5


def diffusers_dit(seed: int, equal: bool = False, **changes):
    """diffusers' DiT with every parameter random; ``equal`` gives all blocks the embedder of the first."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "sample_size": 6,
        "patch_size": 2,
        "num_embeds_ada_norm": 7,
    }
    model = diffusers.DiTTransformer2DModel(**(settings | changes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        fan_in = 25 if parameter.dim() == 1 else 1 if "embedding_table" in name else parameter[0].numel()
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    if equal:
        for block in model.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def inputs(seed: int, model, size: tuple[int, int] | None = None):
    """x [3, C, H, W], labels [3] with the null label among them."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size or (model.spec.height, model.spec.width)
    x = torch.randn(3, model.spec.channels, height, width, generator=generator)
    return x, torch.tensor([model.spec.null_label, 2, 5])


def reload(model, folder):
    model.save_pretrained(folder)
    return load_network(folder)


def saved(state, folder, **options):
    torch.save(state, folder / "network.pt")
    return load_network(folder / "network.pt", **options)[0]


@torch.no_grad()
def row_forward(model, x, times, labels):
    """The row-batched forward of one full branch: the channels that the sampler uses."""
    batch, height, width = len(x), *x.shape[-2:]
    rows = make_rows(model, batch, height, width, row_blocks=1, slots=1, times=batch, conditions=batch)
    rows.load(times, [labels])
    layout = RowLayout((Path.full(0, model.spec.depth),), model.spec.depth)
    return rows.forward(x, at_times(torch.arange(batch)), layout, torch.ones(batch, 1))


# --- one forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equal", "changes"),
    [
        (True, {}),
        (False, {}),
        (True, {"in_channels": 3, "out_channels": 3, "patch_size": 4, "sample_size": 12, "num_layers": 5}),
        (False, {"in_channels": 3, "out_channels": 6, "patch_size": 8, "sample_size": 24, "norm_eps": 1e-3}),
        (True, {"out_channels": None, "num_layers": 1}),
    ],
)
def test_diffusers_forward(tmp_path, equal, changes):
    theirs = diffusers_dit(1, equal, **changes)
    ours, report = reload(theirs, tmp_path)
    assert ours.spec.per_block_embedding == (not equal and theirs.config.num_layers > 1)
    assert len(report.ignored) == (5 * (theirs.config.num_layers - 1) if equal else 0)
    x, labels = inputs(2, ours)
    times = torch.tensor([0, 481, 999])
    expected = theirs(x, times, labels).sample
    assert (ours(x, times, labels) - expected).abs().max() < PARITY
    assert (row_forward(ours, x, times, labels) - expected[:, : ours.spec.channels]).abs().max() < PARITY


class _Stopped(Exception):
    """Leaves diffusers' forward after its last projection: its unpatchify knows square latents only."""


@pytest.mark.parametrize("size", [(10, 10), (4, 4), (6, 10), (14, 2)])
def test_diffusers_at_other_latent_sizes(tmp_path, size):
    theirs = diffusers_dit(3)
    ours, _ = reload(theirs, tmp_path)
    x, labels = inputs(4, ours, size)
    times = torch.tensor([3, 700, 998])
    taken = []

    def stop(module, arguments, output):
        taken.append(output)
        raise _Stopped

    with theirs.proj_out_2.register_forward_hook(stop), pytest.raises(_Stopped):
        theirs(x, times, labels)
    expected = patches_to_image(taken[0], 2, size[0] // 2, size[1] // 2)
    assert (ours(x, times, labels) - expected).abs().max() < PARITY
    assert (row_forward(ours, x, times, labels) - expected[:, :4]).abs().max() < PARITY


@pytest.mark.parametrize(
    ("family", "times", "settings"),
    [
        ("dit", [0.0, 481.0, 999.0], {}),
        ("dit", [1.0, 17.0, 640.0], {"channels": 3, "out_channels": 6, "patch": 4, "depth": 5}),
        ("dit", [1.0, 17.0, 640.0], {"patch": 8, "grid": 1, "hidden": 100}),
        ("sit", [0.0, 0.3, 1.0], {}),
        ("sit", [0.01, 0.5, 0.99], {"channels": 3, "out_channels": 3, "patch": 4, "grid": 5}),
        ("repa", [0.0, 0.37, 1.0], {"out_channels": 4}),
        ("repa", [0.0, 0.37, 1.0], {"out_channels": 4, "qk_heads": 2, "projectors": True, "depth": 5}),
    ],
)
def test_official_equations(tmp_path, family, times, settings):
    state = random_state(5, **settings)
    ours = saved(state, tmp_path, family=family, heads=2)
    x, labels = inputs(6, ours)
    times = torch.tensor(times)
    expected = forward(state, x, times, labels, heads=2)
    assert (ours(x, times, labels) - expected).abs().max() < PARITY
    assert (row_forward(ours, x, times.double(), labels) - expected[:, : ours.spec.channels]).abs().max() < PARITY


def test_branch_head_reads_after_its_block(tmp_path):
    state = random_state(7, depth=5, out_channels=4, mid_layer=True)
    ours = saved(state, tmp_path, heads=2, exit_layer=3)
    x, labels = inputs(8, ours)
    times = torch.tensor([0.2, 0.5, 0.9])
    final, heads = ours(x, times, labels, exits=True)
    assert (final - forward(state, x, times, labels, 2)).abs().max() < PARITY
    assert (heads[3] - forward(state, x, times, labels, 2, exit_layer=3)).abs().max() < PARITY


def test_the_stored_position_table_is_used_at_its_own_size(tmp_path):
    """An averaged checkpoint's table has drifted; parity needs that table, not the exact one."""
    state = random_state(9)
    state["pos_embed"] = state["pos_embed"] + 2e-4 * torch.randn(state["pos_embed"].shape, generator=torch.manual_seed(0))
    ours = saved(state, tmp_path, family="dit", heads=2)
    x, labels = inputs(10, ours)
    times = torch.tensor([0.0, 481.0, 999.0])
    expected = forward(state, x, times, labels, heads=2)
    assert (ours(x, times, labels) - expected).abs().max() < PARITY
    assert (row_forward(ours, x, times, labels) - expected[:, :4]).abs().max() < PARITY


# --- whole runs -------------------------------------------------------------------------------------------------------


def relative_error(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def ddim(spacing: str, steps: int):
    """DDIM on DiT's betas, deterministic, with the chain indices it visits."""
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", clip_sample=False, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    if spacing == "linspace":  # its steps span 999 / (steps - 1) indices, but it looks 1000 // steps indices ahead
        scheduler.num_inference_steps = steps - 1
    return scheduler


def schedule_of(scheduler) -> Schedule:
    """The scheduler's own levels in flow coordinates, ``s / (alpha + s)``."""
    kept = scheduler.alphas_cumprod[scheduler.timesteps].double()
    return Schedule((*((1 - kept).sqrt() / (kept.sqrt() + (1 - kept).sqrt())).tolist(), 0.0))


@pytest.mark.parametrize(
    ("spacing", "steps", "scale", "channels"),
    [("linspace", 28, 1.0, None), ("linspace", 10, 3.5, 3), ("leading", 25, 4.0, None), ("trailing", 20, 2.0, 3)],
)
def test_ddim_run_equals_diffusers_stepping(tmp_path, spacing, steps, scale, channels):
    state = random_state(11)
    saved(state, tmp_path, family="dit", heads=2)
    engine = Engine.from_pretrained(tmp_path / "network.pt", family="dit", heads=2, device="cpu")
    scheduler = ddim(spacing, steps)
    noise, labels = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(12)), [6, 2, 5]
    guidance = CFG(scale, channels=channels) if scale != 1 else Unguided()
    schedule = None if spacing == "linspace" else schedule_of(scheduler)
    run = engine.sample(labels, guidance, steps=steps, schedule=schedule, solver="ddim", noise=noise)
    assert run.plan.parameterization.network_time(run.plan.sigmas).tolist() == scheduler.timesteps.tolist()
    x = noise
    for t in scheduler.timesteps:
        eps = guided(state, x, t.expand(3), torch.tensor(labels), 2, scale, channels or 4)
        x = scheduler.step(eps, t, x).prev_sample
    assert relative_error(run.latents, x) < RUN_PARITY


def test_ddim_run_on_the_diffusers_network_from_a_pipeline_folder(tmp_path):
    theirs = diffusers_dit(13)
    theirs.save_pretrained(tmp_path / "transformer")
    scheduler = ddim("leading", 10)
    scheduler.save_pretrained(tmp_path / "scheduler")
    engine = Engine.from_pretrained(tmp_path, device="cpu")
    noise, labels = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(14)), torch.tensor([1, 4])
    run = engine.sample(labels.tolist(), CFG(2.5), schedule=schedule_of(scheduler), solver="ddim", noise=noise)
    x, both = noise, torch.cat([labels, torch.full_like(labels, 7)])
    for t in scheduler.timesteps:
        cond, uncond = theirs(torch.cat([x, x]), t.expand(4), both).sample[:, :4].chunk(2)
        x = scheduler.step(uncond + 2.5 * (cond - uncond), t, x).prev_sample
    assert relative_error(run.latents, x) < RUN_PARITY


@pytest.mark.parametrize("family", ["sit", "repa"])
def test_euler_run_equals_the_papers_ode(tmp_path, family):
    """SiT integrates from t = 0 (noise) to 1 (data), REPA from t = 1 to 0; the state is the same."""
    state = random_state(15, out_channels=8 if family == "sit" else 4)
    saved(state, tmp_path, family=family, heads=2)
    engine = Engine.from_pretrained(tmp_path / "network.pt", family=family, heads=2, device="cpu")
    noise, labels = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(16)), torch.tensor([0, 3])
    run = engine.sample(labels.tolist(), CFG(2.0, channels=3), steps=9, noise=noise)
    x, times = noise, torch.linspace(0, 1, 10, dtype=torch.float64)
    for t, following in zip(times[:-1], times[1:], strict=True):
        at, step = (t, following - t) if family == "sit" else (1 - t, t - following)
        x = x + float(step) * guided(state, x, at.expand(2), labels, 2, scale=2.0, channels=3)
    assert relative_error(run.latents, x) < RUN_PARITY
