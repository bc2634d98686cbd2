"""What a plan is told of an adapter in the weights that it runs on."""

from dataclasses import dataclass, replace

from ..rules.rule_text import rule_text
from .plan import Plan


@dataclass(frozen=True)
class MergedAdapter:
    """What an engine says of the adapter in its weights; ``rule`` is empty where its file does not tell."""

    title: str
    rule: str
    line: str

    def warn(self, plan: Plan) -> Plan:
        """``plan`` with a warning if it guides a network that holds guidance already."""
        if not self.rule or not (plan.evaluated.any() or plan.corrections):
            return plan
        rule = rule_text(plan.guidance)
        note = f"{rule} guides on top of the {self.title}, which holds {self.rule} already: sample it with none"
        return replace(plan, warnings=(*plan.warnings, note))
