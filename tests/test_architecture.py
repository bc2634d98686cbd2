"""The direction of imports, read from the source: bench, training -> engine -> models -> kernels, and no arrow back."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# what each folder may import of the others; segue/ is the public face and may import them all
MAY_IMPORT = {
    "kernels": set(),
    "models": {"kernels"},
    "engine": {"models", "kernels"},
    "training": {"engine", "models", "kernels"},
    "bench": {"training", "engine", "models", "kernels", "segue"},
    "segue": {"bench", "training", "engine", "models", "kernels"},
}
# optional or slow to import: inside the functions that use them
HEAVY = {
    *("accelerate", "diffusers", "matplotlib", "peft", "pynvml", "ray", "torchao", "torchmetrics", "torchvision"),
    *("transformers", "xformers"),
}
MODULES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One import as written: ``segue.engine.plan`` with level 0, or ``plan`` with level 1 for ``from .plan import``."""

    module: str
    level: int
    line: int
    top: bool  # runs when the file is imported

    @property
    def first(self) -> str:
        return self.module.split(".")[0]


def imports_of(tree: ast.AST, top: bool = True) -> list[Import]:
    """Every import below ``tree``; those inside functions and ``if TYPE_CHECKING`` do not run on import."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, 0, node.lineno, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names] if node.module in (None, "segue") else []
            modules = [f"{node.module}.{name}" if node.module else name for name in names] or [node.module]
            found += [Import(module, node.level, node.lineno, top) for module in modules]
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            found += imports_of(node, top and not function and not for_types)
    return found


def faults(path: Path, source: str) -> list[str]:
    """What is wrong with the imports of one file of the checkout (``path`` relative to its root)."""
    folder, depth = path.parts[0], len(path.parts) - 1
    wrong = []
    for item in imports_of(ast.parse(source)):
        place = f"{path}:{item.line}: {'.' * item.level}{item.module}"
        if item.level > depth:
            wrong.append(f"{place} leaves the folder by a relative import; write segue.<folder>")
        elif item.level:
            continue
        elif item.first in MAY_IMPORT and item.first != "segue":
            wrong.append(f"{place} is a bare name; write segue.{item.module}")
        elif item.first == "segue":
            target = item.module.split(".")[1] if "." in item.module else "segue"
            target = target if target in MAY_IMPORT else "segue"  # a public name
            if target == folder:
                wrong.append(f"{place} is of the same folder; import it relatively")
            elif target not in MAY_IMPORT[folder]:
                wrong.append(f"{place} points the wrong way: {folder} may import {sorted(MAY_IMPORT[folder]) or 'none'}")
        elif item.top and item.first in HEAVY:
            wrong.append(f"{place} is heavy or optional; import it where it is used")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    assert faults(path.relative_to(ROOT), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source", "word"),
    (
        ("kernels/a.py", "from segue.models.rows import FULL", "wrong way"),
        ("models/a.py", "def f():\n    import segue.engine.plan", "wrong way"),
        ("engine/a.py", "from segue import Plan", "wrong way"),
        ("engine/a.py", "from segue import training", "wrong way"),
        ("engine/adapters/a.py", "from segue.engine.plan import Plan", "same folder"),
        ("engine/adapters/a.py", "from ...models import rows", "relative import"),
        ("training/a.py", "from ..engine import plan", "relative import"),
        ("training/a.py", "from models.sit import SiT", "bare name"),
        ("bench/a.py", "import kernels", "bare name"),
        ("engine/a.py", "try:\n    import diffusers.models\nexcept ImportError:\n    pass", "heavy"),
        ("engine/a.py", "class A:\n    from transformers import AutoModel", "heavy"),
    ),
)
def test_the_test_sees_what_is_wrong(path, source, word):
    assert [word in fault for fault in faults(Path(path), source)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    (
        ("engine/adapters/a.py", "from ..plan import Plan\nfrom . import b\nfrom segue.models.sit import SiT"),
        ("engine/a.py", "def f():\n    import diffusers\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray"),
        ("bench/a.py", "import segue\nfrom segue import CFG\nfrom segue.training.recipes import RECIPES"),
    ),
)
def test_the_test_lets_pass_what_is_right(path, source):
    assert faults(Path(path), source) == []


def test_every_folder_is_a_package_and_no_file_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    for path in MODULES:
        assert (path.parent / "__init__.py").is_file(), path
        assert path.stem not in drawers, path
