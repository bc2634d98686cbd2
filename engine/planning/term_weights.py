"""Terms of a rule -> what every branch weighs at every step, which channels it guides, when it is evaluated."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from segue.models.spec import ModelSpec

from ..rules.branch import COND, NEGATIVE_TEXT, UNCOND, Branch
from ..rules.correction import CallLevels
from ..rules.drawn import ClassifierReference
from ..rules.guidance import Guidance, Term
from ..rules.normalized_attention import NormalizedAttention
from ..rules.reference_corrections import Perpendicular
from .choices import with_choosers


def rule_branches(rules: Iterable[Guidance]) -> tuple[Branch, ...]:
    """The conditional branch, those that any of ``rules`` guides by, what chooses labels of drawn ones, the text of a NAG."""
    rules = tuple(rules)
    guiding = dict.fromkeys(term.branch for rule in rules for term in rule.terms if not term.branch.is_conditional)
    text = [NEGATIVE_TEXT] if any(part.acts for rule in rules for part in rule.attention) else []
    return *with_choosers((COND, *guiding)), *text


def resolve_weights(
    guidance: Guidance, branches: tuple[Branch, ...], step_sigmas: np.ndarray, ends: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    """The summed weights [steps, K] of the branches after the conditional one, and what is odd about the windows.

    Steps start at ``step_sigmas`` and end at ``ends``, which weights of both levels need.  Windows are resolved here and
    nowhere else.  Of a rule whose numbers all samples share.
    """
    ends = np.full(len(step_sigmas), math.nan) if ends is None else ends
    warnings: list[str] = []
    weights = np.zeros((len(step_sigmas), len(branches) - 1))
    for term in guidance.terms:
        chosen = np.flatnonzero(term.window.select(step_sigmas))
        if not len(chosen):
            warnings.append(f"the window {term.window} of {term.branch} selects none of {len(step_sigmas)} steps")
        if term.window.kind == "steps" and term.window.high > len(step_sigmas):
            warnings.append(f"the window {term.window} of {term.branch} reaches past the last step, {len(step_sigmas)}")
        if term.branch.is_conditional:
            warnings.append(f"the branch {term.branch} perturbs no layer and changes nothing")
            continue
        for rank, step in enumerate(chosen):
            position = rank / (len(chosen) - 1) if len(chosen) > 1 else 0.5
            weights[step, branches.index(term.branch) - 1] += term.weight(float(step_sigmas[step]), position, float(ends[step]))
    return weights, warnings


def coverage_warnings(guidance: Guidance, step_sigmas: np.ndarray) -> list[str]:
    """Overlaps of windows, unguided holes between them, and an unguided end after windows counted in steps."""
    parts: tuple[Term | NormalizedAttention, ...] = (*guidance.terms, *guidance.attention)
    if not parts:
        return []
    chosen = np.array([part.window.select(step_sigmas) for part in parts])
    warnings = []
    for i, j in zip(*np.triu_indices(len(guidance.terms), 1), strict=True):
        both = int((chosen[i] & chosen[j]).sum())
        first, second = guidance.terms[i], guidance.terms[j]
        if both and first.window != second.window:
            warnings.append(f"the windows of {first.branch} and {second.branch} overlap in {both} steps: both terms add there")
    guided = np.flatnonzero(chosen.any(axis=0))
    holes = [(int(a) + 2, int(b)) for a, b in zip(guided, guided[1:], strict=False) if b > a + 1]
    warnings += [f"steps {a} to {b} lie between two windows and are unguided" for a, b in holes]
    count = len(step_sigmas)
    if len(guided) and guided[-1] + 1 < count and all(part.window.kind == "steps" for part in parts):
        # a recipe written for fewer steps; windows in sigma or fractions end where they are meant to
        warnings.append(f"steps {guided[-1] + 2} to {count} come after the last window and are unguided")
    return warnings


def correction_warnings(guidance: Guidance, branches: tuple[Branch, ...], levels: CallLevels) -> list[str]:
    """Corrections that have nothing to correct, and one that leaves no step with a velocity."""
    steps = levels.steps
    warnings = [
        f"{correction} corrects what terms add, and the rule has none that add: it changes nothing"
        for correction in guidance.corrections
        if all(branch.is_text for branch in branches[1:]) and not correction.alone
    ]
    directions = [term for term in guidance.terms if term.branch.condition != "cond" and term.branch.model == "main"]
    for correction in guidance.corrections:
        if why := correction.idle(levels):
            warnings.append(f"{correction} changes nothing: {why}")
        if correction.needs_reference and not directions:  # of a batch in which another rule has one
            warnings.append(f"{correction} corrects a term with another condition, and the rule has none: it changes nothing")
        if isinstance(correction, Perpendicular) and {term.branch for term in guidance.terms} <= {UNCOND}:
            warnings.append(f"{correction} is about terms beside that of uncond, and the rule has none: it changes nothing")
    if guidance.zero_steps >= steps:
        (silent,) = (correction for correction in guidance.corrections if correction.zero_steps)
        warnings.append(f"{silent} leaves none of {steps} steps a velocity: nothing is evaluated and the noise is returned")
    return warnings


def channel_masks(rules: Iterable[Guidance], branches: tuple[Branch, ...], channels: int) -> np.ndarray:
    """Guided channels [K] of each branch; two terms on one branch must agree, those of two samples too."""
    masks = np.full(len(branches) - 1, channels)
    seen: dict[Branch, int] = {}
    for term in (term for rule in rules for term in rule.terms):
        if term.branch.is_conditional:
            continue
        count = term.channels or channels
        if seen.setdefault(term.branch, count) != count:
            raise ValueError(f"two terms on the branch {term.branch} guide {seen[term.branch]} and {count} channels")
        masks[branches.index(term.branch) - 1] = count
    return masks


def reference_branch(
    guidance: Guidance, rules: Sequence[Guidance], branches: tuple[Branch, ...], spec: ModelSpec
) -> int | None:
    """The index of the branch that the rule's correction acts on; None where it acts on the whole or there is none.

    It is the branch of a term of some rule of the batch; a branch that only a classifier looks at is none.  Raises
    ``ValueError`` for a correction that does not fit the terms or the network.
    """
    corrections = [correction for correction in guidance.corrections if correction.needs_reference]
    if not corrections:
        return None
    correction = corrections[0]
    perpendicular = next((own for own in corrections if isinstance(own, Perpendicular)), None)
    guiding = {term.branch for rule in rules for term in rule.terms}
    others = [i for i, own in enumerate(branches) if own in guiding and own.condition != "cond" and own.model == "main"]
    if perpendicular is not None:
        others = [i for i in others if branches[i] == UNCOND]
        if not others:
            raise ValueError(f"{perpendicular} is about the term of uncond, and the rule has none")
        for term in guidance.terms:
            if term.channels is not None and term.channels < spec.channels:
                raise ValueError(
                    f"{perpendicular} reduces over all {spec.channels} latent channels, and a term guides {term.channels}"
                )
    if len(others) != 1:
        whose = "the rule has" if rule_branches([guidance]) == branches else "the rules of the batch have"
        raise ValueError(f"{correction} corrects one term with another condition, and {whose} {len(others)}")
    for correction in corrections:
        if correction.space == "velocity" and (spec.prediction == "epsilon" or spec.path == "cosine"):
            found = "predicts noise" if spec.prediction == "epsilon" else "predicts those of the cosine path"
            raise ValueError(f"{correction} acts on velocities, and {spec.name} {found}")
    if isinstance(branches[others[0]].condition, ClassifierReference):
        raise ValueError(
            f"{corrections[0]} scales a term by the rule's number, and that of the {branches[others[0]]} is its classifier's"
        )
    terms = [term for term in guidance.terms if term.branch == branches[others[0]]]
    if any(term.channels is not None and term.channels < spec.channels for term in terms):
        raise ValueError(
            f"{corrections[0]} reduces over all latent channels, and {branches[others[0]]} guides some of them: give "
            f"channels={spec.channels}"
        )
    if not all(term.reuse.is_exact for term in terms):
        raise ValueError(f"{corrections[0]} needs {branches[others[0]]} at every call, and the rule reuses its directions")
    return others[0]
