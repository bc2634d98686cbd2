"""``docs/architecture.md``: each module once, in a sentence, and no path that does not lead anywhere."""

import re
from collections import Counter

from architecture_page import FOLDERS, PAGE, ROOT, is_listed, sentence, written

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_says_of_each_module_what_the_module_says():
    """After a change: ``python tests/oracles/architecture_page.py``."""
    assert written(TEXT) == TEXT


def test_each_module_is_named_once():
    """Read from the page alone, by its headings and the first cell of each line."""
    named, folder = Counter(), ""
    for line in TEXT.splitlines():
        if heading := re.fullmatch(r"### (\S+)/", line):
            folder = heading[1]
        elif cell := re.match(r"\| `(\w+\.py)` \| \S", line):
            named[f"{folder}/{cell[1]}"] += 1
    tree = [path for top in FOLDERS for path in (ROOT / top).rglob("*.py") if is_listed(path)]
    assert named == Counter(str(path.relative_to(ROOT)) for path in tree)


def test_a_sentence_is_one_line_and_no_two_modules_share_one():
    sentences = [sentence(path) for top in FOLDERS for path in (ROOT / top).rglob("*.py")]
    assert max(map(len, sentences)) <= 140
    assert [text for text, times in Counter(sentences).items() if times > 1] == []


def test_every_path_in_the_documents_leads_somewhere():
    for page in (PAGE, ROOT / "CONTRIBUTING.md"):
        named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", page.read_text(encoding="utf-8"))
        paths = [path for path in named if not path.startswith("out/")]  # what commands write
        assert len(paths) > 10
        assert [path for path in paths if not (ROOT / path).exists()] == []
