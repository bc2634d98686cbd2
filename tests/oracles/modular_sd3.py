"""Modular diffusers' own SD3 denoising loop around a guider, and rules and runs by definition, for tests of guiders."""

import copy

import torch

from segue import CFG, SGG, SkipLayer, Unguided, Window

STEPS, SHIFT = 5, 3.0
SKIP = (1, 2, 3)


def position(step, first, last):
    return (step - first) / (last - first)


# a rule, and by definition the weights of the negative and of the weak branch at step i and its sigma s
RULES = {
    "unguided": (Unguided(), lambda i, s: (0.0, 0.0)),
    "cfg": (CFG(4.5), lambda i, s: (3.5, 0.0)),
    "cfg off": (CFG(1.0) + SkipLayer(0.0, SKIP), lambda i, s: (0.0, 0.0)),
    "skip list": (SkipLayer(2.5, list(SKIP)), lambda i, s: (0.0, 2.5)),
    "sgg": (SGG(CFG(4.5), SkipLayer(3.0, SKIP), 0.7), lambda i, s: (3.5, 0.0) if s > 0.7 else (0.0, 3.0)),
    "interval": (CFG(3.0, window=Window.sigma(0.4, 0.8)), lambda i, s: (2.0 * (0.4 < s <= 0.8), 0.0)),
    "function": (CFG(lambda s: 1 + s), lambda i, s: (s, 0.0)),
    "published": (
        CFG(4.5, window=Window.steps(1, 2)) + SkipLayer(3.0, SKIP, window=Window.steps(3, 5)),
        lambda i, s: (3.5, 0.0) if i < 2 else (0.0, 3.0),
    ),
    "overlap": (
        CFG(4.0, delta=1.0, window=Window.steps(1, 4)) + SkipLayer(2.0, SKIP, window=Window.fraction(0.4, 1.0)),
        lambda i, s: ((3.0 + 1 - 2 * position(i, 0, 3)) * (i < 4), 2.0 * (i >= 2)),
    ),
}


class Recorder:
    """Notes what reaches the transformer's own ``forward``: (skipped layers, whether the prompt is the positive one)."""

    def __init__(self, transformer, prompts):
        self.calls, self.original = [], transformer.forward

        def forward(*args, **kwargs):
            positive = bool(torch.equal(kwargs["encoder_hidden_states"], prompts["prompt_embeds"]))
            self.calls.append((tuple(kwargs.get("skip_layers") or ()), positive))
            return self.original(*args, **kwargs)

        transformer.forward = forward


def drawn_prompts() -> dict[str, torch.Tensor]:
    """Embeddings of two prompts and their negative ones, by the names that pipelines give them."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"prompt_embeds": (2, 7, 24), "pooled_prompt_embeds": (2, 20)}
    shapes |= {f"negative_{name}": shape for name, shape in shapes.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_scheduler(kind: str):
    """A flow-matching scheduler: Euler with a ``static`` or ``dynamic`` shift, or ``heun``."""
    import diffusers

    if kind == "heun":
        return diffusers.FlowMatchHeunDiscreteScheduler(shift=SHIFT)
    if kind == "dynamic":
        return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def run_pipeline(transformer, scheduler, guider, prompts, latents):
    """Modular diffusers' denoising blocks, from set_timesteps to the last latents; returns (latents, recorded calls)."""
    from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
        StableDiffusion3T2ICoreDenoiseStep,
    )

    pipe = StableDiffusion3T2ICoreDenoiseStep().init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    transformer = copy.copy(transformer)  # its own __dict__, the same parameters
    recorder = Recorder(transformer, prompts)
    pipe.update_components(transformer=transformer, scheduler=scheduler, guider=guider)
    size = {"height": 8 * latents.shape[2], "width": 8 * latents.shape[3]}
    given = {"latents": latents.clone(), "num_inference_steps": STEPS, **size}
    result = pipe(**prompts, **given, output="latents")
    return result, recorder.calls


def without_blocks(transformer, layers):
    """The weak network by definition: a copy that does not have these blocks."""
    weak = copy.deepcopy(transformer)
    weak.transformer_blocks = torch.nn.ModuleList(
        block for index, block in enumerate(weak.transformer_blocks) if index not in layers
    )
    return weak


@torch.no_grad()
def naive_run(transformer, scheduler, weights, prompts, latents):
    """Every branch at every call; ``weights(step, its sigma)`` gives the weights of the negative and of the weak branch.

    Returns the last latents and the number of branches with a weight, over all calls.
    """
    weak = without_blocks(transformer, SKIP)
    kwargs = {}
    if scheduler.config.get("use_dynamic_shifting"):
        tokens = (latents.shape[2] // 2) * (latents.shape[3] // 2)
        kwargs["mu"] = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(STEPS, **kwargs)
    starts = sorted(set(scheduler.sigmas.tolist()), reverse=True)
    x, evaluations = latents.clone(), 0
    for call, t in enumerate(scheduler.timesteps):
        step = call // scheduler.order
        positive = {
            "encoder_hidden_states": prompts["prompt_embeds"],
            "pooled_projections": prompts["pooled_prompt_embeds"],
        }
        negative = {
            "encoder_hidden_states": prompts["negative_prompt_embeds"],
            "pooled_projections": prompts["negative_pooled_prompt_embeds"],
        }
        c, u, k = (
            network(hidden_states=x, timestep=t.expand(len(x)), return_dict=False, **condition)[0].double()
            for network, condition in ((transformer, positive), (transformer, negative), (weak, positive))
        )
        w_u, w_k = weights(step, starts[step])
        evaluations += 1 + (w_u != 0) + (w_k != 0)
        x = scheduler.step((c + w_u * (c - u) + w_k * (c - k)).float(), t, x, return_dict=False)[0]
    return x, evaluations


def one_call(transformer, guider, data, timestep=500.0, step=0, steps=1):
    """One pass of the loop body; returns the guided prediction and, per evaluation, whether the guider calls it positive."""
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(timestep))
    batches, seen = guider.prepare_inputs(data), []
    for batch in batches:
        guider.prepare_models(transformer)
        with torch.no_grad():
            batch.noise_pred = transformer(
                hidden_states=batch.hidden_states,
                timestep=torch.full((len(batch.hidden_states),), timestep),
                encoder_hidden_states=batch.encoder_hidden_states,
                pooled_projections=batch.text_embeds,
                return_dict=False,
            )[0]
        seen.append(guider.is_conditional)
        guider.cleanup_models(transformer)
    return guider(batches).pred, seen


def inputs(prompts, latents, negative=True):
    """What diffusers' SD3 block hands to a guider: pairs, or the positive inputs alone without a negative prompt."""
    if not negative:
        return {
            "hidden_states": latents,
            "encoder_hidden_states": prompts["prompt_embeds"],
            "text_embeds": prompts["pooled_prompt_embeds"],
        }
    return {
        "hidden_states": (latents, latents),
        "encoder_hidden_states": (prompts["prompt_embeds"], prompts["negative_prompt_embeds"]),
        "text_embeds": (prompts["pooled_prompt_embeds"], prompts["negative_pooled_prompt_embeds"]),
    }


def plain(network, prompts, latents, timestep=500.0):
    """The network's own output on the positive prompt, in fp64."""
    with torch.no_grad():
        return network(
            hidden_states=latents,
            timestep=torch.full((len(latents),), timestep),
            encoder_hidden_states=prompts["prompt_embeds"],
            pooled_projections=prompts["pooled_prompt_embeds"],
            return_dict=False,
        )[0].double()
