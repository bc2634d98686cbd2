"""Links of the documents lead somewhere: to files that are there, to headings that are there, to pictures."""

import re

import pytest
import yaml
from markdown_pages import ROOT, anchors, documents, links

PAGES = documents()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
OUTSIDE = ("https://", "http://", "mailto:")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    lost = []
    for link in links(page):
        if link.startswith(OUTSIDE):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT) and target.exists() and not path.startswith("/")
        if not inside or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            lost.append(link)
    assert lost == []


def test_every_page_is_reached_from_the_readme():
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not link.startswith(OUTSIDE)]
            waiting += [target for target in targets if target.suffix == ".md" and target.exists()]
    assert set(PAGES) - seen == set()


def test_every_page_of_the_docs_is_in_the_site_once():
    navigation = yaml.safe_load(re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))["nav"]

    def targets(entries):
        for entry in entries:
            for value in entry.values():
                yield from targets(value) if isinstance(value, list) else [value]

    listed = list(targets(navigation))
    assert len(set(listed)) == len(listed) and [name for name in listed if not (ROOT / name).exists()] == []
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")} <= set(listed)


def test_a_lost_link_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A b, c!\n[x](gone.md) ![y](gone.png)\n```bash\n[z](w)\n```\n`[u](v)`\n## A b, c!\n", encoding="utf-8")
    assert links(page) == ["gone.md", "gone.png"] and anchors(page) == {"a-b-c"}
