"""The ``guidance_scale`` of a pipeline's call: into a rule that takes it, else a warning where it has no effect."""

import inspect
from typing import Any

from ..planning.plan_warnings import warn_caller
from ..rules.batch import Rules, plain_rules, takes_call_scale, with_call_scale
from ..rules.branch import UNCOND
from ..rules.per_sample import shared
from ..rules.rule_text import shown_rule
from .running_pipeline import argument_of_call

ARGUMENT = "guidance_scale"


def rule_of_call(rule: Rules, pipe: Any) -> Rules:
    """``rule`` for the run of ``pipe`` that begins: at 1 and below the scale of the call is off, as in diffusers.

    Raises ``ValueError`` for a rule that takes the scale of a call where no call of the pipeline is running.
    """
    scale = argument_of_call(pipe, ARGUMENT)
    if takes_call_scale(rule):
        if scale is None:
            raise ValueError(
                f"the rule {shown_rule(rule)} takes its scale from the call of the attached pipeline, and none is running; "
                "write a number"
            )
        return with_call_scale(rule, max(float(scale), 1.0))
    parameter = inspect.signature(type(pipe).__call__).parameters.get(ARGUMENT)
    asked = scale is not None and scale > 1 and parameter is not None and scale != parameter.default
    terms = (term for one in plain_rules(rule) for term in one.terms)
    if asked and not any(term.branch == UNCOND and shared(term.weight.base) + 1 == scale for term in terms):
        warn_caller(
            f"{ARGUMENT}={scale:g} has no effect on the attached rule {shown_rule(rule)}; a rule with CFG('call') takes it"
        )
    return rule
