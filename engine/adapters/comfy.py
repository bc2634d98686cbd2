"""A ComfyUI node for segmented guidance on SD3 and SD3.5: CFG above a noise level, skip-layer guidance at and below it.

To install it, install Segue into ComfyUI's Python (``pip install`` and the path of its checkout) and copy ``examples/comfyui``
of that checkout to ``ComfyUI/custom_nodes/segue``.  That is the node of ComfyUI's V3 interface (``comfy_v3.py``).  A ComfyUI
without ``comfy_api`` takes the same node by this line in ``ComfyUI/custom_nodes/segue_sgg.py``::

    from segue.engine.adapters.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

The node goes between the model and a sampler that takes a negative prompt (KSampler, CFGGuider); the sampler's own ``cfg``
loses its effect.  A guider that calls ``calc_cond_batch`` by itself (DualCFGGuider) goes past the node, and samplers that
step along the unconditional prediction (the ``cfg_pp`` ones) see the guided one in its place.

Where it acts: ComfyUI's ``sampling_function`` lets ``model_options["sampler_calc_cond_batch_function"]`` evaluate the two
conditions, then forms ``uncond + cfg (cond - uncond)``; with the guided estimate in both places that is the guided estimate
for every ``cfg``.  No other hook runs before the unconditional pass.  Estimates are of the clean image, on which linear rules
act as on velocities.  A hook around whole evaluations cannot reach into the attention, so there is no NAG here; ComfyUI has a
node of its own for that.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..planning.term_weights import resolve_weights, rule_branches
from ..rules.branch import UNCOND
from ..rules.dropped_blocks import DropBlocks
from ..rules.guidance import Guidance
from ..rules.integers import parse_integers
from ..rules.linear_rules import CFG, SGG, SkipLayer
from ..rules.preset_numbers import DEFAULTS

NODE, TITLE, CATEGORY = "SegueSegmentedGuidance", "Segmented Guidance (Segue)", "advanced/guidance"
DESCRIPTION = "CFG above the switch, skip-layer guidance at and below it; the negative prompt is not evaluated there."
HOOK = "sampler_calc_cond_batch_function"
AUTO = "auto"
MEDIUM_BLOCKS = 24  # of SD3-medium and SD3.5-medium; the published layers damage the larger model


def bypass(block: dict, extra: dict) -> dict:
    """ComfyUI's replacement of a joint block: the image and the text stream leave as they came."""
    return block


def skip_options(model_options: dict, layers: tuple[int, ...]) -> dict:
    """A copy of ComfyUI's model options in which the joint blocks ``layers`` are bypassed."""
    transformer = dict(model_options.get("transformer_options", {}))
    replaced = dict(transformer.get("patches_replace", {}))
    replaced["dit"] = {**replaced.get("dit", {}), **{("double_block", layer): bypass for layer in layers}}
    return {**model_options, "transformer_options": {**transformer, "patches_replace": replaced}}


def choose_layers(text: str, blocks: int) -> tuple[int, ...]:
    """Blocks to skip from ``7, 8, 9``, ``7-9`` or ``auto``, checked against the number of blocks of the model."""
    if not isinstance(text, str):
        raise TypeError(f"layers are written as text, such as '7, 8, 9' or 'auto', got {text!r}")
    if text.strip() == AUTO:
        if blocks != MEDIUM_BLOCKS:
            raise ValueError(
                f"name the layers to skip: the published 7, 8, 9 suit SD3-medium and SD3.5-medium ({MEDIUM_BLOCKS} blocks) "
                f"and damage a model of {blocks} blocks"
            )
        return DEFAULTS["sd3-medium"]["sgg"]["layers"]
    layers = tuple(parse_integers(text))
    for layer in layers:
        if layer >= blocks:
            raise ValueError(f"layer {layer} does not exist: the model has blocks 0 to {blocks - 1}")
    return layers


def guided_estimate(rule: Guidance, args: dict) -> Tensor:
    """``c + sum_k w_k (c - k)`` over the live branches at the noise level of ``args``, [B, C, H, W].

    ``args`` are those of ComfyUI's hook: ``conds`` = [positive, negative or None], ``input`` x, ``sigma`` [B], ``model``,
    ``model_options``.
    """
    if rule.corrections:
        raise ValueError(f"this hook adds terms and corrects nothing, got {rule}")
    if any(isinstance(term.branch.network, DropBlocks) for term in rule.terms):
        raise ValueError(f"this hook leaves out the same blocks at every step, got {rule}")
    if rule.attention:
        raise ValueError(
            "this hook evaluates whole conditions, and NAG acts inside the attention: use ComfyUI's own node for it"
        )
    from comfy.samplers import calc_cond_batch

    conds, x, sigma, options = args["conds"], args["input"], args["sigma"], args["model_options"]
    levels = np.minimum(sigma.detach().cpu().double().numpy(), 1.0)  # a sampler that adds noise may pass 1
    branches = rule_branches([rule])
    weights, _ = resolve_weights(rule, branches, levels)
    if (weights != weights[0]).any():
        raise ValueError(
            f"samples of one batch lie on both sides of the switch: sigma {levels.min():.4g} to {levels.max():.4g}"
        )
    live = {branch: weight for branch, weight in zip(branches[1:], weights[0].tolist(), strict=True) if weight}
    if UNCOND in live and conds[1] is None:
        raise ValueError("segmented guidance needs a negative prompt: use a sampler or guider that takes one")
    plain = [conds[0], conds[1]] if UNCOND in live else [conds[0]]
    estimates = calc_cond_batch(args["model"], plain, x, sigma, options)
    guided = conditional = estimates[0]
    for branch, weight in live.items():
        if branch == UNCOND:
            reference = estimates[1]
        else:
            (reference,) = calc_cond_batch(args["model"], plain[:1], x, sigma, skip_options(options, branch.perturbed_layers))
        guided = guided + weight * (conditional - reference)
    return guided


def make_hook(cfg: float, weight: float, layers: tuple[int, ...], level: Callable[[Any], float]) -> Callable[[dict], list]:
    """What ComfyUI calls in place of the evaluation of both conditions; ``level(model)`` is the switch as a sigma."""

    def segmented(args: dict) -> list[Tensor]:
        rule = SGG(CFG(cfg), SkipLayer(weight, layers), level(args["model"]))
        guided = guided_estimate(rule, args)
        return [guided.clone() for _ in args["conds"]]

    return segmented


def patched_model(model: Any, cfg: float, weight: float, layers: str, switch_by: str, switch: float) -> Any:
    """A clone of the model patcher with the hook; the original keeps its options.

    Raises ``TypeError`` or ``ValueError`` for another model than SD3 and SD3.5, and for numbers that no rule takes.
    """
    blocks = getattr(model.get_model_object("diffusion_model"), "joint_blocks", None)
    if blocks is None:
        raise ValueError("segmented guidance skips the joint blocks of SD3 and SD3.5, and this model has none")
    if HOOK in model.model_options:
        raise ValueError("another node already decides which conditions this model evaluates; remove one of the two")
    if switch_by not in ("sigma", "percent"):
        raise ValueError(f"the switch is given by sigma or by percent, got {switch_by!r}")
    chosen = choose_layers(layers, len(blocks))
    SGG(CFG(cfg), SkipLayer(weight, chosen), switch)  # values out of range raise here, not in the sampler

    def level(sampled: Any) -> float:
        # asked at each call: a node behind this one may change the shift
        return float(sampled.model_sampling.percent_to_sigma(float(switch))) if switch_by == "percent" else switch

    patched = model.clone()
    patched.set_model_sampler_calc_cond_batch_function(make_hook(cfg, weight, chosen, level))
    patched.model_options["disable_cfg1_optimization"] = True  # or a sampler at cfg 1 hides the negative prompt
    return patched


class SegueSegmentedGuidance:
    """The node: a model in, a model out whose sampling follows the rule."""

    RETURN_TYPES: ClassVar = ("MODEL",)
    FUNCTION = "apply"
    CATEGORY = CATEGORY
    DESCRIPTION = DESCRIPTION

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """Names, types and defaults of the inputs: the published recipe, whose switch lies at sigma 0.75 at shift 3."""
        scale = {"min": 0.0, "max": 100.0, "step": 0.1}
        return {
            "required": {
                "model": ("MODEL",),
                "cfg": ("FLOAT", {"default": 4.5, **scale, "tooltip": "CFG scale above the switch; 1 is off"}),
                "weight": ("FLOAT", {"default": 3.0, **scale, "tooltip": "weight of the skip-layer branch; 0 is off"}),
                "layers": ("STRING", {"default": AUTO, "tooltip": "blocks to skip, such as 7, 8, 9; auto for 24 blocks"}),
                "switch_by": (["sigma", "percent"], {"tooltip": "percent is ComfyUI's, from 0 at pure noise to 1"}),
                "switch": ("FLOAT", {"default": 0.75, "min": 0.0, "max": 1.0, "step": 0.001}),
            }
        }

    def apply(self, **given: Any) -> tuple[Any]:
        """The patched model, as :func:`patched_model` makes it."""
        return (patched_model(**given),)


NODE_CLASS_MAPPINGS = {NODE: SegueSegmentedGuidance}
NODE_DISPLAY_NAME_MAPPINGS = {NODE: TITLE}
