"""Rules by drawn references as the name and the options that make them again."""

from dataclasses import fields
from typing import Any

from .drawn import ClassifierReference, Draw, RandomCondition

Options = dict[str, Any]
Named = tuple[str, Options]
WITHOUT_TEXT = "<function>"  # in the place of a weight that is a function of sigma
FORBIDDEN = set("=+|")  # in a name of a rule's text; a comma begins the next entry of a list
OPTIONS = ("form", "gain", "lag", "source", "every", "interval", "temperature", "model")


def drawn_rule(draw: Draw, model: str, scale: Any, weight: Any) -> Named | None:
    """The rule that draws ``draw`` and runs it through the network ``model``; None where no named rule does.

    ``scale``: what CFG would have as its scale, None for a function; ``weight``: as it stands in a text.
    """
    classes = _classes(draw)
    if classes is None:
        return None
    if isinstance(draw, RandomCondition):
        return ("icg", {"scale": WITHOUT_TEXT if scale is None else scale} | classes) if model == "main" else None
    if not isinstance(draw, ClassifierReference) or model != (draw.model if draw.form == "ag-swap" else "main"):
        return None
    if isinstance(draw.classifier, str) and (set(draw.classifier) & FORBIDDEN or "," in draw.classifier):
        return None
    usual = {field.name: field.default for field in fields(draw)}
    given = {name: getattr(draw, name) for name in OPTIONS if getattr(draw, name) != usual[name]}
    name = draw.classifier if isinstance(draw.classifier, str) else f"<{draw.classifier_name}>"
    return "gfcg", {"weight": weight, "classifier": name} | given | classes


def _classes(draw: Draw) -> Options | None:
    """The options of the classes of prompts; None where a text cannot hold them."""
    if draw.classes is None:
        return {}
    texts = (*draw.classes.names, draw.classes.template)
    spaced = ", ".join(piece.strip() for piece in draw.classes.template.split(","))  # as a text is read
    if any(set(text) & FORBIDDEN or text != text.strip() for text in texts) or spaced != draw.classes.template:
        return None
    if any("," in name for name in draw.classes.names):
        return None
    return {"classes": draw.classes.names, "template": draw.classes.template}
