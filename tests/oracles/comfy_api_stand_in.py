"""A stand-in for ``comfy_api.latest``, as far as nodes of the V3 interface touch it.

What it mimics, from ComfyUI's migration guide to V3 and its ``comfy_api/latest/_io.py`` and ``nodes.py``:

- ``io.Schema`` holds node_id, display_name, category, inputs, outputs, description; ids of inputs are unique.
- An input is ``io.<Kind>.Input(id, ...)``; beside ``tooltip`` a number takes default, min, max and step, a string default, a
  combo its options and default.  The dictionary that V1's frontend reads is made of it, without what was not given.
- ``io.ComfyNode`` is never instantiated by a graph: ``define_schema`` and ``execute`` are class methods, ``execute`` is given
  the inputs by their ids, on a locked clone of the class, and returns an ``io.NodeOutput``.
- A module of custom nodes that has ``NODE_CLASS_MAPPINGS`` is one of V1; else its ``comfy_entrypoint``, a function or a
  coroutine function, gives a ``ComfyExtension``, whose coroutine ``get_node_list`` gives a list of such classes.
"""

import asyncio
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any


class Input:
    """``taken``: the settings that a kind of input has, beside its id and tooltip."""

    io_type, taken = "", frozenset()

    def __init__(self, id: str, **settings: Any):
        unknown = set(settings) - self.taken - {"tooltip"}
        if unknown:
            raise TypeError(f"an input of {self.io_type} takes no {sorted(unknown)}")
        self.id, self.settings = id, settings

    def v1(self) -> tuple[str, dict]:
        return self.io_type, {name: value for name, value in self.settings.items() if value is not None}


class ComboInput(Input):
    def __init__(self, id: str, options: list[str], **settings: Any):
        super().__init__(id, options=options, **settings)


def kind(io_type: str, base: type[Input] = Input, *taken: str) -> SimpleNamespace:
    made = type(io_type, (base,), {"io_type": io_type, "taken": frozenset(taken)})
    return SimpleNamespace(Input=made, Output=lambda: SimpleNamespace(io_type=io_type))


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list = field(default_factory=list)
    description: str = ""


@dataclass(init=False)
class NodeOutput:
    args: tuple

    def __init__(self, *args: Any):
        self.args = args


class ComfyNode(ABC):
    @classmethod
    @abstractmethod
    def define_schema(cls) -> Schema: ...

    @classmethod
    @abstractmethod
    def execute(cls, **given: Any) -> NodeOutput: ...

    @classmethod
    def info_v1(cls) -> dict[str, Any]:
        """What the frontend is told about the node."""
        schema = cls.define_schema()
        ids = [one.id for one in schema.inputs]
        assert len(set(ids)) == len(ids), f"ids of inputs must be unique: {ids}"
        told = {"input": {"required": {one.id: one.v1() for one in schema.inputs}}, "name": schema.node_id}
        told |= {"output": [one.io_type for one in schema.outputs], "display_name": schema.display_name}
        return told | {"category": schema.category, "description": schema.description}

    @classmethod
    def run(cls, **given: Any) -> tuple:
        """As a graph calls it."""
        assert set(given) == {one.id for one in cls.define_schema().inputs}
        output = type("Clone", (cls,), {"__slots__": ()}).execute(**given)
        assert isinstance(output, NodeOutput)
        return output.args


class ComfyExtension:
    async def on_load(self) -> None:
        """Nothing, unless an extension has something to do."""

    async def get_node_list(self) -> list[type[ComfyNode]]:
        raise NotImplementedError


NUMBER = ("default", "min", "max", "step", "round")
io = SimpleNamespace(
    Schema=Schema,
    NodeOutput=NodeOutput,
    ComfyNode=ComfyNode,
    Model=kind("MODEL"),
    Float=kind("FLOAT", Input, *NUMBER),
    String=kind("STRING", Input, "default", "multiline"),
    Combo=kind("COMBO", ComboInput, "options", "default"),
)


def latest() -> ModuleType:
    """The module ``comfy_api.latest``."""
    module = ModuleType("comfy_api.latest")
    module.io, module.ComfyExtension = io, ComfyExtension
    return module


def load_custom_node(module: Any) -> dict[str, type]:
    """The node classes of a module of custom nodes, by their ids."""
    if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None:
        return dict(module.NODE_CLASS_MAPPINGS)

    async def load() -> list[type[ComfyNode]]:
        entry = module.comfy_entrypoint
        extension = await entry() if inspect.iscoroutinefunction(entry) else entry()
        assert isinstance(extension, ComfyExtension)
        await extension.on_load()
        return await extension.get_node_list()

    nodes = asyncio.run(load())
    assert isinstance(nodes, list)
    return {node.define_schema().node_id: node for node in nodes}
