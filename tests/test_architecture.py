"""The direction of imports, read from the source: bench, training, serving -> engine -> models -> kernels, and no arrow back.

Inside ``engine/`` rooms lie on floors, in the order in which a call walks down, and nowhere do modules import in a circle.
Imports inside functions count like those at the top of a file.
"""

import ast
import re
from pathlib import Path

import pytest
from import_graph import cycle_in, import_graph, imports_of, module_of, targets

ROOT = Path(__file__).parents[1]
# what each folder may import of the others; segue/ is the public face and may import them all
MAY_IMPORT = {
    "kernels": set(),
    "models": {"kernels"},
    "engine": {"models", "kernels"},
    "training": {"engine", "models", "kernels"},
    "bench": {"training", "engine", "models", "kernels", "segue"},
    "serving": {"engine", "models", "kernels"},
    "segue": {"bench", "training", "serving", "engine", "models", "kernels"},
}
# of engine/, from the top down: a module imports from its own floor and from those below
FLOORS = (
    ("cli",),
    ("engine", "fp8_error"),
    ("prompts", "records"),
    ("adapters",),
    ("core", "velocity", "scheduling"),
    ("running",),
    ("planning",),
    ("rules", "labels"),
    ("argument_names", "device", "files", "images", "linears", "numeric_input", "saved_files", "sources"),
)
MOST_FLOORS, MOST_FILES = 9, 14
# optional or slow to import: inside the functions that use them
HEAVY = {
    *("accelerate", "diffusers", "matplotlib", "peft", "pynvml", "ray", "torchao", "torchmetrics", "torchvision"),
    *("transformers", "xformers", "fastapi", "starlette", "uvicorn", "prometheus_client"),
}
# what the modules of a folder are made of and import at their top: they are themselves imported where they are used
OWN = {"serving": {"fastapi", "starlette", "uvicorn", "prometheus_client"}}
LIGHT = {"cli.py", "serve_options.py", "settings.py", "__init__.py"}  # but not these, which `segue --help` imports
MODULES = sorted(path.relative_to(ROOT) for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
SOURCES = {path: (ROOT / path).read_text(encoding="utf-8") for path in MODULES}


def faults(path: Path, source: str) -> list[str]:
    """What is wrong with the imports of one file of the checkout (``path`` relative to its root) between folders."""
    folder, depth = path.parts[0], len(path.parts) - 1
    wrong = []
    for item in imports_of(ast.parse(source)):
        place = f"{path}:{item.line}: {item}"
        if item.level > depth:
            wrong.append(f"{place} leaves the folder by a relative import; write segue.<folder>")
        elif item.level:
            continue
        elif item.first in MAY_IMPORT and item.first != "segue":
            wrong.append(f"{place} is a bare name; write segue.{item.module}")
        elif item.first == "segue":
            found = {item.module.split(".")[1]} if "." in item.module else set(item.names) or {"segue"}
            for target in {name if name in MAY_IMPORT else "segue" for name in found}:  # segue: a public name
                if target == folder:
                    wrong.append(f"{place} is of the same folder; import it relatively")
                elif target not in MAY_IMPORT[folder]:
                    wrong.append(f"{place} points the wrong way: {folder} may import {sorted(MAY_IMPORT[folder]) or 'none'}")
        elif item.top and item.first in HEAVY - (OWN.get(folder, set()) if path.name not in LIGHT or depth > 1 else set()):
            wrong.append(f"{place} is heavy or optional; import it where it is used")
    return wrong


def floor_of(module: str) -> int | None:
    """The floor of a module of ``engine``, the top one is 0; None for one that has no place, and for the package itself."""
    room = module.split(".")[1] if "." in module else ""
    return next((floor for floor, rooms in enumerate(FLOORS) if room in rooms), None)


def floor_faults(path: Path, source: str, modules: frozenset[str]) -> list[str]:
    """What is wrong with the imports of one file of ``engine/`` between its rooms."""
    own, wrong = floor_of(module_of(path)), []
    if own is None and path != Path("engine/__init__.py"):
        return [f"{path} has no place in a room of FLOORS"]
    for item in imports_of(ast.parse(source)):
        for target in sorted(targets(item, path, modules)):
            if not target.startswith("engine"):
                continue
            floor = floor_of(target)
            if floor is None:
                wrong.append(f"{path}:{item.line}: {item} names no room")
            elif own is None or floor < own:
                wrong.append(f"{path}:{item.line}: {item} points up, to {'/'.join(FLOORS[floor])}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path):
    assert faults(path, SOURCES[path]) == []


def test_the_rooms_of_the_engine_lie_on_few_floors_and_their_imports_point_down():
    modules = frozenset(map(module_of, MODULES))
    inside = [path for path in MODULES if path.parts[0] == "engine"]
    assert [fault for path in inside for fault in floor_faults(path, SOURCES[path], modules)] == []
    assert len(FLOORS) <= MOST_FLOORS
    assert len([path for path in inside if path.parent == Path("engine")]) <= MOST_FILES
    rooms = {path.parts[1].removesuffix(".py") for path in inside}
    assert rooms - {"__init__"} == {room for floor in FLOORS for room in floor}


def test_the_drawing_shows_the_floors_in_their_order():
    drawing = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    names = [room if (ROOT / "engine" / room).is_dir() else f"{room}.py" for floor in FLOORS for room in floor]
    places = [re.search(rf"(?<=\s){re.escape(name)}", drawing[drawing.index("engine/") :]) for name in names]
    assert [place and place.start() for place in places] == sorted(place.start() for place in places if place)


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_no_module_imports_itself_through_others(folder):
    """Types may look at each other: what a type checker reads runs nowhere."""
    assert cycle_in(import_graph({path: text for path, text in SOURCES.items() if path.parts[0] == folder}, types=False)) == []


@pytest.mark.parametrize(
    ("path", "source", "word"),
    (
        ("kernels/a.py", "from segue.models.rows import FULL", "wrong way"),
        ("models/a.py", "def f():\n    import segue.engine.core", "wrong way"),
        ("engine/a.py", "from segue import Plan", "wrong way"),
        ("engine/a.py", "import segue", "wrong way"),
        ("engine/a.py", "from segue import training", "wrong way"),
        ("engine/adapters/a.py", "from segue.engine.core import EngineCore", "same folder"),
        ("engine/adapters/a.py", "from ...models import rows", "relative import"),
        ("training/a.py", "from ..engine import core", "relative import"),
        ("training/a.py", "from models.sit import SiT", "bare name"),
        ("bench/a.py", "import kernels", "bare name"),
        ("engine/a.py", "try:\n    import diffusers.models\nexcept ImportError:\n    pass", "heavy"),
        ("engine/a.py", "class A:\n    from transformers import AutoModel", "heavy"),
        ("engine/a.py", "from segue.serving.settings import Settings", "wrong way"),
        ("bench/a.py", "def f():\n    from segue.serving import app", "wrong way"),
        ("training/a.py", "from fastapi import FastAPI", "heavy"),
        ("serving/cli.py", "from fastapi import FastAPI", "heavy"),
        ("serving/app.py", "import ray", "heavy"),
        ("serving/app.py", "from segue.bench import runs", "wrong way"),
        ("serving/app.py", "import segue", "wrong way"),
    ),
)
def test_the_test_sees_what_is_wrong(path, source, word):
    assert [word in fault for fault in faults(Path(path), source)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    (
        ("engine/adapters/a.py", "from ..planning.plan import Plan\nfrom . import b\nfrom segue.models.sit import SiT"),
        ("engine/a.py", "def f():\n    import diffusers\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray"),
        ("bench/a.py", "import segue\nfrom segue import CFG\nfrom segue.training.recipes import RECIPES"),
        ("serving/app.py", "from fastapi import FastAPI\nfrom segue.engine.core import EngineCore"),
    ),
)
def test_the_test_lets_pass_what_is_right(path, source):
    assert faults(Path(path), source) == []


@pytest.mark.parametrize(
    ("path", "source", "word"),
    (
        ("engine/planning/a.py", "from ..running.program import Program", "points up, to running"),
        ("engine/planning/a.py", "from ..running import program", "points up, to running"),
        ("engine/rules/a.py", "def f():\n    from ..planning.plan import Plan", "points up, to planning"),
        ("engine/rules/a.py", "if TYPE_CHECKING:\n    from ..core import EngineCore", "points up, to core/velocity"),
        ("engine/files.py", "from .cli import selection", "points up, to cli"),
        ("engine/core.py", "from . import engine", "points up, to engine"),
        ("engine/__init__.py", "from .files import whole_file", "points up"),
        ("engine/shed/a.py", "import math", "no place"),
        ("engine/a.py", "import math", "no place"),
    ),
)
def test_the_test_sees_an_arrow_up(path, source, word):
    modules = frozenset(map(module_of, MODULES))
    assert [word in fault for fault in floor_faults(Path(path), source, modules)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    (
        ("engine/cli/a.py", "from ..engine import Engine\nfrom . import options\nfrom ..running.sampler import CallInfo"),
        ("engine/engine.py", "def f():\n    from .prompts.engine import PromptEngine\nfrom segue.models.sit import SiT"),
        ("engine/velocity.py", "from .core import EngineCore\nfrom .rules import guidance"),
    ),
)
def test_the_test_lets_arrows_down_pass(path, source):
    assert floor_faults(Path(path), source, frozenset(map(module_of, MODULES))) == []


@pytest.mark.parametrize(
    ("sources", "cycle"),
    (
        ({"a": "from .b import x", "b": "def f():\n    from .a import y"}, ["models.a", "models.b", "models.a"]),
        ({"a": "from . import b", "b": "from . import c", "c": "import segue.models.b"}, ["models.b", "models.c", "models.b"]),
        ({"a": "from .b import x", "b": "if TYPE_CHECKING:\n    from .a import y"}, []),
        ({"a": "from .b import x\nfrom .c import x", "b": "from .c import y", "c": "import math"}, []),
    ),
)
def test_the_test_sees_a_cycle(sources, cycle):
    graph = import_graph({Path(f"models/{name}.py"): text for name, text in sources.items()}, types=False)
    assert cycle_in(graph) == cycle


def test_every_folder_is_a_package_and_no_file_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    for path in MODULES:
        assert (ROOT / path.parent / "__init__.py").is_file(), path
        assert path.stem not in drawers, path
