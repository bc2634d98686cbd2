"""The modules of ``docs/architecture.md``: the first sentence of each, by folder.

``python tests/oracles/architecture_page.py`` writes them into the page, between its markers.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("segue", "engine", "models", "kernels", "training", "bench", "serving")
# from the top down, as tests/test_architecture.py holds them
ROOMS = ("engine", "engine/cli", "engine/prompts", "engine/adapters", "engine/running", "engine/planning", "engine/rules")
BEGIN, END = "<!-- modules: python tests/oracles/architecture_page.py -->", "<!-- /modules -->"


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, as Markdown."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    first = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(paragraph.split()))[0]
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", first).replace("``", "`").replace("|", "\\|").rstrip(".:")


def is_listed(path: Path) -> bool:
    """Whether a file is a module of its own: a package's ``__init__`` is where it defines something."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Assign)
    return path.stem != "__init__" or any(isinstance(node, kinds) for node in ast.parse(path.read_text()).body)


def packages() -> list[Path]:
    """Every package, rooms in their order, packages within others after them."""
    found = [path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]

    def place(package: Path) -> tuple:
        name = str(package.relative_to(ROOT))
        return FOLDERS.index(name.split("/")[0]), ROOMS.index(name) if name in ROOMS else len(ROOMS), name

    return sorted(found, key=place)


def tables() -> str:
    """One section for each package: what it is, then a line for each module."""
    text = []
    for package in packages():
        lines = [f"| `{path.name}` | {sentence(path)} |" for path in sorted(package.glob("*.py")) if is_listed(path)]
        heading = f"### {package.relative_to(ROOT)}/\n\n{sentence(package / '__init__.py')}.\n"
        text.append("\n".join([heading, "| module | what it is |", "|---|---|", *lines]))
    return "\n\n".join(text)


def written(page: str) -> str:
    """``page`` with the tables of today between its markers."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
