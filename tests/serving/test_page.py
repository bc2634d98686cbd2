"""The page at ``/`` in a real browser, where there is one: choose, draw, watch, stop."""

import io
import json
import re

import httpx
import pytest
from browser import PROGRAM, open_page
from PIL import Image
from served import events_of, listening, run

from segue.engine.images import RECORD_CHUNK

PAGE = ("/", "/page/page.css", "/page/page.js", "/page/icon.svg")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs chromium; none is installed")


def test_the_page_names_nothing_that_lies_elsewhere(engine):
    async def work(client):
        return [await client.get(path) for path in PAGE]

    answers = run(work, engine)
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert set(re.findall(r"\b(?:https?:)?//[\w.]+", answer.text)) <= {"http://www.w3.org"}  # a namespace
    names = set(re.findall(r'(?:src|href)="([^"]+)"', answers[0].text))
    assert {f"/{name}" for name in names} == set(PAGE[1:])


@pytest.fixture(scope="module")
def url(engine):
    with listening(engine, slots=2) as (url, _):
        yield url


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(url, window):
    """The page as it is when it was just opened; at the end it has met no error."""
    window.look(1000, 900)
    window.open(url)
    window.until("document.getElementById('calls').children.length > 0")
    yield window
    assert window.errors == []


def text(page, name: str) -> str:
    """The text of an element."""
    return page.evaluate(f"document.getElementById('{name}').textContent")


def choose(page, **values) -> None:
    """Set fields as a user does, and let the page hear of it."""
    for name, value in values.items():
        field = f"document.getElementById('{name}')"
        page.evaluate(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('change', {{bubbles: true}}))")


@needs_browser
def test_one_can_choose_a_species_and_a_rule_and_watch_it_draw(page, url):
    assert text(page, "model") == "herbarium, 32 × 32 pixels"
    assert page.evaluate("document.querySelectorAll('#class option').length") == 48
    choose(page, **{"class": 3, "rule": "cfg", "steps": 6, "seed": 7})
    page.until("document.getElementById('cost').textContent.startsWith('6 calls, 12 evaluations')")
    assert text(page, "formula") == "cfg: u + s D"
    page.evaluate(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('picture').src))"
        ".observe(document.getElementById('picture'), {attributes: true, attributeFilter: ['src']});"
        "document.getElementById('form').requestSubmit()"
    )
    page.until("document.getElementById('status').textContent.startsWith('Drawn in')")
    assert text(page, "status").endswith("by cfg:scale=1.77, seed 7")
    assert page.evaluate("document.querySelectorAll('#calls .done').length") == 6
    assert page.evaluate("new Set(seen).size") > 1, "previews came before the picture"
    drawn = page.evaluate("document.getElementById('picture').src").partition(",")[2]
    body = {"prompt": 3, "guidance": "cfg", "steps": 6, "seed": 7}
    assert httpx.post(f"{url}/v1/images/generations", json=body, timeout=None).json()["data"][0]["b64_json"] == drawn
    assert page.evaluate("document.getElementById('download').download") == "acerites-dentata-seed7.png"
    assert page.evaluate("document.querySelectorAll('#pictures li').length") == 1


@needs_browser
def test_the_plan_that_is_shown_is_that_of_the_picture_being_drawn_and_then_that_of_the_form(page):
    choose(page, rule="slg", steps=150)
    page.evaluate("document.getElementById('form').requestSubmit()")  # at once: the plan of the change may still be on its way
    page.until("document.getElementById('status').textContent.startsWith('Call ')")
    choose(page, rule="none")
    assert text(page, "legend") == "condcond skip 7,8"
    page.evaluate("document.getElementById('form').requestSubmit()")
    page.until("document.getElementById('legend').textContent === 'cond'")
    assert text(page, "status") == "Stopped"


@needs_browser
def test_the_line_for_a_shell_asks_for_what_the_page_draws(page, url):
    choose(page, rule="own", own="cfg:scale=2", steps=5, seed=(1 << 64) - 1)
    page.until("document.getElementById('cost').textContent.startsWith('5 calls, 10 evaluations')")
    line = text(page, "curl")
    address, kind, accept, body = re.fullmatch(
        r"curl (\S+) -H '(.*?): (?:.*?)' -H 'Accept: (.*?)' -d '(.*)' -o picture.png", line
    ).groups()
    assert (address, kind) == (f"{url}/v1/images/generations", "Content-Type")
    headers = {"Content-Type": "application/json", "Accept": accept}
    answer = httpx.post(address, content=body, headers=headers, timeout=None)
    assert answer.headers["x-segue-seed"] == str((1 << 64) - 1)
    record = json.loads(Image.open(io.BytesIO(answer.content)).info[RECORD_CHUNK])
    assert (record["rule"], record["seeds"], record["plan"]["steps"]) == ("cfg:scale=2", [(1 << 64) - 1], 5)


@needs_browser
def test_a_refusal_is_shown_and_the_next_drawing_forgets_it(page):
    choose(page, rule="own", own="cgf")
    page.until("!document.getElementById('problem').hidden")
    assert "unknown guidance rule 'cgf'" in text(page, "problem")
    choose(page, rule="none", steps=2)
    page.until("document.getElementById('problem').hidden")
    page.errors.clear()  # the browser's own line on a status of 400


@needs_browser
def test_a_seed_that_is_no_number_is_told_and_hides_no_plan(page):
    choose(page, rule="cfg", steps=6, seed="12a")
    page.until("document.getElementById('cost').textContent.startsWith('6 calls, 12 evaluations')")
    assert '"seed":"12a"' in text(page, "curl")
    page.evaluate("document.getElementById('form').noValidate = true; document.getElementById('form').requestSubmit()")
    page.until("!document.getElementById('problem').hidden")
    assert "seed should be a valid integer, got '12a'" in text(page, "problem")
    page.evaluate("document.getElementById('form').noValidate = false")
    choose(page, seed="")
    page.errors.clear()  # the browser's own line on a status of 400


def cancelled(url: str) -> float:
    """How many requests were given up."""
    return float(re.search(r"^segue_cancelled_total (.*)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)[1])


@needs_browser
def test_stop_gives_the_picture_up_on_the_server_too(page, url):
    before = cancelled(url)
    choose(page, rule="none", steps=200)
    page.evaluate("document.getElementById('form').requestSubmit()")
    page.until("document.getElementById('status').textContent.startsWith('Call ')")
    assert text(page, "draw") == "Stop"
    page.evaluate("document.getElementById('form').requestSubmit()")
    page.until("document.getElementById('status').textContent === 'Stopped'")
    answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": 1, "steps": 1, "stream": True}, timeout=None)
    assert events_of(answer.text)[-1]["type"] == "image_generation.completed"
    while cancelled(url) == before:
        pass


@needs_browser
@pytest.mark.parametrize("width", [320, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_hangs_over_the_edge_and_text_can_be_read_in_both_schemes(page, width, dark):
    page.look(width, 900, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(LEAST_CONTRAST) >= 4.5


@needs_browser
def test_every_field_has_a_name_and_the_keyboard_reaches_it(page):
    for field in page.evaluate("[...document.querySelectorAll('input, select, textarea')].map(one => one.id)"):
        assert page.evaluate(f"document.getElementById('{field}').labels.length") == 1, field
    assert page.evaluate("[...document.querySelectorAll('[tabindex]')].every(one => one.tabIndex === 0)")


# the least contrast (WCAG 2) between the text of an element and what is behind it
LEAST_CONTRAST = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => channels(color).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if ((channels(color)[3] ?? 1) > 0) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const words = [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility()
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return Math.min(...words.map((one) => {
    const both = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  }));
})()"""
