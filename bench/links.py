"""The package without an installation: ``python3 bench/links.py DIR`` links this checkout into DIR, for ``PYTHONPATH``.

For machines whose setuptools cannot install it, and that may fetch nothing: it needs Python alone, and no part of the package.
``PYTHONSAFEPATH`` keeps the folder that a command is started in off the path, for the checkout's folder ``segue`` is only a
part of the package.
"""

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FACE = (".py", ".pyi", ".typed")  # what of segue/ belongs to the package


def folders(setup: Path) -> tuple[str, ...]:
    """The top-level folders that setup.py maps to ``segue.*``; raises ``ValueError`` where it names none."""
    for node in ast.parse(setup.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["FOLDERS"]:
            return tuple(ast.literal_eval(node.value))
    raise ValueError(f"{setup} has no FOLDERS")


def make_links(target: Path, root: Path = ROOT) -> None:
    """Make ``target/segue``, whose modules are links into the checkout, and the metadata that says its version.

    What is there already is replaced where it is a link; raises ``FileExistsError`` for anything else.
    """
    package = target / "segue"
    package.mkdir(parents=True, exist_ok=True)
    modules = [path for path in (root / "segue").iterdir() if path.suffix in FACE]
    for source in (*modules, *(root / folder for folder in folders(root / "setup.py"))):
        link = package / source.name
        if link.is_symlink():
            link.unlink()
        link.symlink_to(source, source.is_dir())
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    information = target / f"{project['name']}-{project['version']}.dist-info"
    information.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (information / "METADATA").write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Make the links and say how to use them."""
    if len(arguments) != 1:
        print("usage: python3 bench/links.py DIR", file=sys.stderr)
        return 2
    target = Path(arguments[0]).resolve()
    make_links(target)
    print(f"export PYTHONSAFEPATH=1 PYTHONPATH={target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
