"""Rules that are sums of terms: classifier-free and weak-network guidance, and their segments.

Where a scale, a weight or a delta is asked for, a list, a tuple, a 1-D array or tensor gives one to each sample of the batch:
``CFG([2.0, 4.0])``.  The share of CFG++ is one for all.
"""

from typing import Literal

import numpy as np

from ..argument_names import refuses_unknown
from ..numeric_input import number_or_each, real_number
from .branch import Branch, Exit, Perturb
from .call_scale import CALL, CallScale
from .dropped_blocks import SHARE, DropBlocks
from .guidance import Guidance, Scale, Term, Weight, weight_of
from .normalized_attention import ALPHA, TAU, NormalizedAttention
from .per_sample import Numbers, as_kept
from .step_weight import PlusPlus, StepWeight
from .window import Window, as_window, segments


def _one_term(branch: Branch, weight: Weight, window: Window | str | None, channels: int | None = None) -> Guidance:
    return Guidance((Term(branch, weight, as_window(window), channels),))


@refuses_unknown()
def CFG(
    scale: Scale | Literal["call"],
    *,
    delta: Numbers = 0.0,
    window: Window | str | None = None,
    condition: str | int = "uncond",
    channels: int | None = None,
) -> Guidance:
    """Classifier-free guidance ``v_u + s (v_c - v_u)``: s = 1 is off.  Source: arXiv 2207.12598.

    ``scale`` is a number, one for each sample of the batch, a function of sigma, or of it and the level where the step ends
    (``lambda sigma, next_sigma: ...``), or, in a rule for :func:`segue.attach`, ``"call"``: the ``guidance_scale`` that the
    pipeline is called with.  ``delta`` adds ``delta (1 - 2 p)`` over the steps of
    the window; ``condition`` is the reference: ``uncond``, ``parent`` (superclass) or a label; ``channels=3`` guides the first
    three latent channels only, as the official DiT and SiT samplers do.
    """
    if isinstance(scale, str) and scale == CALL:
        if any(np.atleast_1d(delta)):
            raise ValueError(f"delta {delta} applies to a constant weight, not to the scale of a call")
        return _one_term(Branch(condition), Weight(function=CallScale()), window, channels)
    return _one_term(Branch(condition), weight_of(scale, delta, offset=1.0), window, channels)


@refuses_unknown()
def CFGPlusPlus(scale: float, *, window: Window | str | None = None, condition: str | int = "uncond") -> Guidance:
    """CFG++: the clean estimate guided by the share ``scale`` between reference and condition, the noise that of the reference.

    As classifier-free guidance with the scale ``scale sigma (1 - next_sigma) / (sigma - next_sigma)`` of each step, which is
    the same where the step is Euler's or DDIM's; other solvers follow the velocity of that scale.  Usual shares are 0.2 to 1:
    0.3 is a scale of 1.6 in the mean of 28 even steps.  None leaves a step unguided.  Source: arXiv 2406.08070, carried over to
    rectified flow.
    """
    if not 0 < real_number(scale, "the share of CFG++ must be a number") <= 10:
        raise ValueError(f"the share of CFG++ must lie between 0 and 10, above 0, got {scale}")
    return _one_term(Branch(condition), Weight(function=StepWeight(PlusPlus(float(scale)), 1.0)), window)


@refuses_unknown()
def SkipLayer(weight: Scale, layers: tuple[int, ...], *, delta: Numbers = 0.0, window: Window | str | None = None) -> Guidance:
    """Skip-layer guidance ``v + w (v_c - v_k)``: w = 0 is off; ``k`` bypasses the blocks ``layers`` (counted from 0).

    The two-stream form bypasses both streams.  Source: Stability's SD3.5 sampler and STG (arXiv 2411.18664).
    """
    return PerturbedLayers(weight, layers, kind="skip", delta=delta, window=window)


@refuses_unknown()
def PerturbedLayers(
    weight: Scale,
    layers: tuple[int, ...],
    *,
    kind: str,
    delta: Numbers = 0.0,
    window: Window | str | None = None,
) -> Guidance:
    """Guidance ``v + w (v_c - v_k)`` by a weak branch with perturbed layers; see :class:`Perturb` for ``kind``."""
    return _one_term(Branch(network=Perturb(kind, layers)), weight_of(weight, delta), window)


@refuses_unknown()
def S2(
    weight: Scale,
    *,
    share: float = SHARE,
    seed: int = 0,
    protected: tuple[int, ...] | None = None,
    delta: Numbers = 0.0,
    window: Window | str | None = None,
) -> Guidance:
    """S2-Guidance ``v + w (v_c - v_k)``: ``k`` leaves out a random ``share`` of the blocks, drawn anew at every step.

    The draws are those of ``seed``, the same for all samples; ``protected`` blocks are never left out, by default the first and
    the last one.  A block that is left out is computed, and its gates are zero, so that one captured step serves all draws: the
    branch costs a row from the first block on that may be left out, and one whose output is not finite is felt.  Usually beside
    CFG.  Source: arXiv 2508.12880, whose code is not published: which blocks it protects is not known here.
    """
    return _one_term(Branch(network=DropBlocks(share, seed, protected)), weight_of(weight, delta), window)


@refuses_unknown()
def EarlyExit(weight: Scale, layer: int, *, delta: Numbers = 0.0, window: Window | str | None = None) -> Guidance:
    """Guidance ``v + w (v_c - v_m)`` by the early-exit head after ``layer`` blocks; it costs no extra rows."""
    return _one_term(Branch(network=Exit(layer)), weight_of(weight, delta), window)


@refuses_unknown()
def AutoGuidance(weight: Scale, *, model: str = "weak", delta: Numbers = 0.0, window: Window | str | None = None) -> Guidance:
    """Guidance ``v + w (v_c - v_k)`` by a smaller or less trained network on the same condition.  Source: arXiv 2406.02507.

    ``model`` names a network that the engine holds beside its own.
    """
    if model == "main":
        raise ValueError("autoguidance needs a second network, got model='main'")
    return _one_term(Branch(model=model), weight_of(weight, delta), window)


@refuses_unknown()
def NAG(scale: Numbers, *, tau: Numbers = TAU, alpha: Numbers = ALPHA, window: Window | str | None = None) -> Guidance:
    """Normalized attention guidance by the negative prompt, inside the attention of SD3 and SD3.5: scale 1 or alpha 0 is off.

    Of each image token's attention outputs ``z+`` with the prompt and ``z-`` with the negative one, ``g = s z+ - (s - 1) z-``
    is scaled down to ``tau`` times the L1 norm of ``z+``, and ``alpha g + (1 - alpha) z+`` goes on.  It acts on the conditional
    rows and on those that perturb layers of them, which are the same network perturbed; not on those of another condition or
    of another network.  Source: arXiv 2505.21179; as in its authors' code the unconditional rows are left alone, which leaves
    those of PAG alone too, and crashes with skipped layers.  The negative text is modulated by its own pooled embedding, as in
    the authors' ComfyUI nodes; their diffusers pipeline takes the positive one's.
    """
    return Guidance(attention=(NormalizedAttention(as_kept(scale), as_kept(tau), as_kept(alpha), as_window(window)),))


@refuses_unknown()
def from_extrapolation(scale: Numbers) -> Numbers:
    """The additive weight ``w`` of ``v_k + g (v_c - v_k)``, the other common convention: ``w = g - 1``; or one per sample."""
    return number_or_each(scale, lambda number: real_number(number, "a scale must be a number") - 1)


@refuses_unknown()
def SGG(strong: Guidance, weak: Guidance, switch: float | Window | str) -> Guidance:
    """Segmented guidance: ``strong`` (condition-dependent) above the noise level ``switch``, ``weak`` at and below it.

    ``switch`` may also be the first segment as a window, ``Window.fraction(0, 0.5)``, or the text of either.  At 0 and 1 one
    rule is everywhere and the other left out, but for a correction of the whole.  Source: arXiv 2603.20584.  The published
    SD3 recipe, 14 + 14 of 28 steps at shift 3, switches at sigma 0.75.
    """
    for name, rule in (("strong", strong), ("weak", weak)):
        if not isinstance(rule, Guidance):
            raise TypeError(f"{name} must be a rule such as CFG(4.5) or SkipLayer(3.0, layers=(7, 8, 9)), got {rule!r}")
    first, second = segments(switch)
    return _segment(strong, first) + _segment(weak, second)


def _segment(rule: Guidance, window: Window) -> Guidance:
    """``rule`` within a segment of the run, which may be empty."""
    confined = rule.within(window)
    if not window.is_empty:
        return confined
    return Guidance((), tuple(correction for correction in rule.corrections if not correction.needs_reference))
