"""The picture of the server's page in ``docs/serving.md``: drawn by the bundled model, photographed by a headless browser.

``python tests/oracles/page_picture.py`` writes it again.
"""

import tempfile
from pathlib import Path

from browser import Page, open_page
from markdown_pages import ROOT
from served import listening

from segue.engine.engine import Engine

PICTURE = ROOT / "docs" / "serving.png"
WIDTH, HEIGHT = 1000, 980
BEFORE = (("28", "exit", 7), ("16", "cfg", 3), ("40", "none", 5), ("3", "slg", 1), ("9", "sgg", 12))  # class, rule, seed
SHOWN = ("3", "sgg", 7)
STATUS = "document.getElementById('status').textContent"


def draw(page: Page, label: str, rule: str, seed: int, steps: int = 28) -> None:
    """Fill the form in and send it."""
    values = {"class": label, "rule": rule, "seed": seed, "steps": steps}
    page.evaluate("".join(f"document.getElementById('{name}').value = '{value}';" for name, value in values.items()))
    page.evaluate("document.getElementById('rule').dispatchEvent(new Event('change', {bubbles: true}))")
    page.until(f"document.getElementById('calls').children.length === {steps}")
    page.evaluate("document.getElementById('form').requestSubmit()")


def main() -> None:
    """Draw some pictures, and photograph the page while it draws one more."""
    engine = Engine.from_pretrained("herbarium")
    with (
        tempfile.TemporaryDirectory() as profile,
        listening(engine, guidance="sgg") as (url, _),
        open_page(Path(profile)) as page,
    ):
        page.look(WIDTH, HEIGHT)
        page.open(url)
        page.until("document.getElementById('calls').children.length > 0")
        for count, sample in enumerate(BEFORE, 1):
            draw(page, *sample)
            page.until(f"document.getElementById('pictures').children.length === {count} && {STATUS}.startsWith('Drawn')")
        draw(page, *SHOWN)
        page.until(f"{STATUS}.startsWith('Call 20 ')")
        page.photograph(PICTURE)


if __name__ == "__main__":
    main()
