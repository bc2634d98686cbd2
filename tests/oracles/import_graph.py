"""The imports of a source tree, read without running it: who imports whom, and the cycles among them."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One import as written: ``segue.models.rows`` with level 0, or ``rows`` with level 1 for ``from .rows import FULL``."""

    module: str
    names: tuple[str, ...]  # of ``from module import names``
    level: int
    line: int
    top: bool  # runs when the file is imported
    types: bool  # for type checkers alone

    @property
    def first(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return "." * self.level + self.module


def imports_of(tree: ast.AST, top: bool = True, types: bool = False) -> Iterator[Import]:
    """Every import below ``tree``; those inside functions and ``if TYPE_CHECKING`` do not run on import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), 0, node.lineno, top, types)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(node.module or "", names, node.level, node.lineno, top, types)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from imports_of(node, top and not function and not checked, types or checked)


def module_of(path: Path) -> str:
    """``engine/planning/plan.py`` -> ``engine.planning.plan``; a package is its folder."""
    return ".".join(path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts)


def targets(item: Import, path: Path, modules: frozenset[str]) -> set[str]:
    """What an import of the file ``path`` names among ``modules``, those of the tree."""
    if item.level:
        above = path.parent.parts[: len(path.parent.parts) - item.level + 1]
        module = ".".join((*above, *([item.module] if item.module else ())))
    else:
        module = item.module.removeprefix("segue.")
    inner = {f"{module}.{name}" for name in item.names} & modules
    whole = {module} & modules if len(inner) < len(item.names) or not item.names else set()
    return inner | whole


def import_graph(sources: Mapping[Path, str], types: bool = True) -> dict[str, set[str]]:
    """Module -> modules of the tree that it imports anywhere, inside functions too; ``types``: and for type checkers alone."""
    modules = frozenset(map(module_of, sources))
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        items = [item for item in imports_of(ast.parse(source)) if types or not item.types]
        graph[module_of(path)] = {target for item in items for target in targets(item, path, modules)}
    return graph


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle, its first module named again at the end, or an empty list."""
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := visit(target, [*trail, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])
