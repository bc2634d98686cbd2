"""Hooks of `mkdocs build`: the documents at the paths that they have in the repository, so that links are the same."""

import runpy
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (
    *("*.md", "LICENSE", "docs/*.md", "docs/*.png", "docs/*.webp", "examples/*"),
    *("docs/reproduction/*.md", "docs/reproduction/*.png"),
    *("models/bundled/*.md", "bench/results/*.md", "bench/results/*.svg"),
)
made = tempfile.TemporaryDirectory()  # gone with the process


@event_priority(100)  # before the reader of docstrings looks where the package is
def on_config(config):
    """Lay links to the documents into a folder, which the site is made of, and to the package for its docstrings."""
    folder = Path(made.name)
    for pattern in SHOWN:
        for document in ROOT.glob(pattern):
            link = folder / "pages" / document.relative_to(ROOT)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)  # `mkdocs serve` comes here again
            link.symlink_to(document)
    config.docs_dir = str(folder / "pages")
    runpy.run_path(str(ROOT / "bench" / "links.py"))["make_links"](folder / "package")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder / "package")]
    return config
