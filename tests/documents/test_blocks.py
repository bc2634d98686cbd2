"""Commands and code of the documents run as they are written; what is not run says why in a comment above it."""

import re
import shlex

import pytest
from document_runs import Page, write_stand_ins
from markdown_pages import ROOT, blocks, documents, spans
from typer.main import get_command

from segue.__main__ import app

RUN = ("bash", "python")
PAGES = {str(page.relative_to(ROOT)): [block for block in blocks(page) if block.language in RUN] for page in documents()}


def pages(slow: bool) -> list[str]:
    """Pages with blocks to run: all of those with a slow one, or of each page those that are not slow."""
    wanted = {name: [block for block in found if block.mark != "not run"] for name, found in PAGES.items()}
    return [name for name, found in wanted.items() if found and (not slow or any(block.mark == "slow" for block in found))]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-ins")
    write_stand_ins(folder)
    return folder


@pytest.fixture
def run_page(stand_ins, tmp_path, monkeypatch):
    def run(name: str, slow: bool) -> None:
        page = Page(tmp_path, stand_ins, monkeypatch)
        try:
            for block in PAGES[name]:
                if block.mark != "not run" and (slow or block.mark != "slow"):
                    page.run(block)
        finally:
            page.server.stop()

    return run


@pytest.mark.parametrize("name", pages(slow=False))
def test_blocks_run_as_written(run_page, name):
    run_page(name, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", pages(slow=True))
def test_slow_blocks_run_too(run_page, name):
    run_page(name, slow=True)


def test_every_block_is_named_by_its_language_and_none_is_left_out_without_a_reason():
    found = [(name, block) for name in PAGES for block in blocks(ROOT / name)]
    languages = {block.language for _, block in found}
    assert languages <= {*RUN, "", "text", "json"}
    silent = [f"{name}:{block.line}" for name, block in found if block.mark in ("not run", "raises") and not block.words]
    assert silent == []


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_sentences_have_options_that_exist(name):
    program = get_command(app)
    for code in spans(ROOT / name):
        if re.match(r"(\.venv/bin/)?segue [a-z]", code):
            check_options(program, program.make_context("segue", []), shlex.split(code)[1:])


def check_options(group, context, words: list[str]) -> None:
    """Raise click's error for a command or an option that is not there; what is needed may be left out."""
    name, command, rest = group.resolve_command(context, words)
    if not rest:
        return
    try:
        own = command.make_context(name, list(rest), parent=context)
        if hasattr(command, "commands"):
            check_options(command, own, rest)
    except Exception as error:
        if type(error).__name__ != "MissingParameter" and "requires an argument" not in str(error):
            raise


def test_an_option_that_is_gone_would_be_seen():
    program = get_command(app)
    context = program.make_context("segue", [])
    check_options(program, context, ["bench", "report", "rows.jsonl"])
    for words in (["plan", "--rules", "cfg"], ["bench", "reports"], ["plam"]):
        with pytest.raises(Exception, match="No such"):
            check_options(program, context, words)
