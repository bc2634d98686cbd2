"""Guidance by a drawn reference: gradient-free classifier guidance in three forms, and independent condition guidance."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..argument_names import refuses_unknown
from .branch import Branch
from .drawn import ClassifierReference, Form, RandomCondition, Source, class_prompts
from .guidance import Guidance, Scale
from .linear_rules import CFG, AutoGuidance
from .per_sample import Numbers
from .window import Window, as_window


@refuses_unknown()
def GFCG(
    weight: Scale,
    *,
    classifier: str | Callable[..., Any],
    form: Form = "rival",
    gain: float = 0.0,
    lag: int = 1,
    source: Source = "cond",
    every: int = 1,
    interval: Window | str | None = None,
    temperature: float = 1.0,
    model: str = "weak",
    classes: Sequence[str] | None = None,
    template: str | None = None,
    delta: Numbers = 0.0,
    window: Window | str | None = None,
) -> Guidance:
    """Guidance away from the class that a classifier takes a sample for, without its gradients; ``weight`` 0 is off.

    A reconstruction after GFCG, whose formulas are not published: from ``grad log p(c|x) = sum_k p_k (s_c - s_k)``, with
    ``p`` the classifier's on the clean estimate and ``r`` the likeliest class but ``c``.  ``form``:

    ``rival``: ``v_c + w (1 - p_c) (v_c - v_r)``.
    ``cfg-swap``: ``v_c + w (v_c - v_k)``, ``k`` the rival where ``p_r > p_c``, else no condition.
    ``ag-swap``: ``v_c + w f (v_c - v_weak,k)`` by the network ``model``; ``k`` the rival and ``f = 1 + gain (1 - p_c)`` where
    ``p_r > p_c``, else the own label and ``f = 1``.

    ``classifier``: ``herbarium-classifier``, a classifier's file, ``timm:NAME``, ``torchvision:NAME`` (on latents behind the
    model's VAE), or a callable from estimates [B, C, H, W] fp32, in the network's data range, to logits [B, classes].
    ``lag=1`` takes the choice of the call before; a run's first call is then unguided (rival), plain CFG or plain
    autoguidance.  ``lag=0`` lets the conditional rows, the classifier and the reference's rows follow one another.
    ``source`` is whose estimate is classified: that of the condition, of the weak network or without condition.  ``every``:
    at every so manieth call a new choice; ``interval``: where choices act, elsewhere as at a first call;
    ``temperature`` divides the logits.  ``classes`` and ``template`` are for prompts: see :class:`.drawn.ClassPrompts`.
    """
    draw = ClassifierReference(
        class_prompts(classes, template), classifier, form, gain, lag, source, every, as_window(interval), temperature, model
    )
    branch = Branch(draw, model=model if form == "ag-swap" else "main")
    return _by(AutoGuidance(weight, delta=delta, window=window), branch)


@refuses_unknown()
def ICG(
    scale: Scale,
    *,
    delta: Numbers = 0.0,
    window: Window | str | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    template: str | None = None,
) -> Guidance:
    """Independent condition guidance ``v_u + s (v_c - v_u)``, ``u`` any other class: s = 1 is off.  Source: arXiv 2407.02687.

    The class is drawn anew for every sample and step, from the sample's seed; in a loop that gives no seeds, from its place in
    the batch.  Near ``CFG`` at high noise, where a label says little; below, a random label adds a direction of its own, which
    a ``window`` leaves out.  ``channels`` as in :func:`.linear_rules.CFG`, ``classes`` and ``template`` as in :func:`GFCG`.
    """
    draw = RandomCondition(class_prompts(classes, template))
    return _by(CFG(scale, delta=delta, window=window, channels=channels), Branch(draw))


def _by(rule: Guidance, branch: Branch) -> Guidance:
    """The one term of ``rule`` with another branch."""
    (term,) = rule.terms
    return Guidance((replace(term, branch=branch),))
