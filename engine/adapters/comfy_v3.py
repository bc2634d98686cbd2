"""The ComfyUI node of ``comfy.py`` in ComfyUI's V3 interface: ``comfy_entrypoint``, a schema, a class without state.

Name, inputs and outputs are those of the V1 node, so that workflows made with one open with the other.  ComfyUI takes V1 nodes
first where a module holds both, so the two are modules of their own.  ``comfy_api`` is ComfyUI's and is imported inside it.
"""

from typing import Any

from . import comfy

KINDS = {"MODEL": "Model", "FLOAT": "Float", "STRING": "String"}  # by their names in V1 and in V3


async def comfy_entrypoint() -> Any:
    """The extension that ComfyUI asks a module of custom nodes for."""
    from comfy_api.latest import ComfyExtension

    class SegueExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return [segmented_guidance()]

    return SegueExtension()


def segmented_guidance() -> type:
    """The node's class, on top of ComfyUI's own."""
    from comfy_api.latest import io

    class SegueSegmentedGuidance(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            return io.Schema(
                node_id=comfy.NODE,
                display_name=comfy.TITLE,
                category=comfy.CATEGORY,
                description=comfy.DESCRIPTION,
                inputs=schema_inputs(io),
                outputs=[io.Model.Output()],
            )

        @classmethod
        def execute(cls, **given: Any) -> Any:
            return io.NodeOutput(comfy.patched_model(**given))

    return SegueSegmentedGuidance


def schema_inputs(io: Any) -> list:
    """The inputs of the V1 node as V3 writes them: lists of choices are combos."""
    inputs = []
    for name, (kind, *options) in comfy.SegueSegmentedGuidance.INPUT_TYPES()["required"].items():
        settings = dict(*options)
        if isinstance(kind, list):
            inputs.append(io.Combo.Input(name, options=kind, **settings))
        else:
            inputs.append(getattr(io, KINDS[kind]).Input(name, **settings))
    return inputs
