"""The playground as people meet it: `segue ui` as a process, and a headless Chromium that may reach nothing else."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from segue.api import Model
from tests.ui.conftest import PROMPT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SECONDS = 60_000  # milliseconds that a loaded machine may take for one thing
SLOW = "phi_decoding"  # with these fields it writes for minutes
SLOWLY = "beams=8 rollouts=8 agreed=1 foresights=50"
NASTY = "Say <script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\"> ${alert(1)} {{value}}"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: apt-get install chromium"),
    # Its client leaves a loop of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        launched = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A page of the playground, and at the end: it asked nobody else for anything, and no script of it failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    opened = context.new_page()
    opened.set_default_timeout(SECONDS)
    asked: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(url)
    expect(opened.locator("#run")).to_be_visible(timeout=SECONDS)
    yield opened
    context.close()
    assert len(asked) > 5
    strangers = [one for one in asked if not one.startswith((url + "/", "data:", "blob:"))]
    assert strangers == []
    assert errors == []


def pick(page: Page, side: str, method: str) -> None:
    box = page.locator(f"#method-{side} input")
    box.click()
    box.fill(method)
    page.get_by_role("option", name=method, exact=True).last.click()
    expect(box).to_have_value(method)


def fill(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name}").locator("textarea, input").first.fill(value)


def run(page: Page) -> None:
    page.locator("#run").click()
    expect(page.locator("#verdict .seg-verdict")).to_be_visible(timeout=SECONDS)


def text(page: Page, side: str) -> str:
    return page.locator(f"#side-{side} .seg-text").text_content() or ""


def kept(page: Page, name: str) -> None:
    """A screenshot that CI keeps where SEGUE_ARTEFACTS names a folder."""
    folder = os.environ.get("SEGUE_ARTEFACTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / name, full_page=True)


def test_two_methods_side_by_side(page: Page, lm: Model, tmp_path: Path) -> None:
    fill(page, "prompt", PROMPT)
    pick(page, "left", "token_recycling")
    pick(page, "right", "lookahead")
    fill(page, "fields-right", "window=5")
    fill(page, "max-tokens", "40")
    run(page)
    offline = lm.generate(PROMPT, "plain", max_tokens=40)
    for side in ("left", "right"):
        assert text(page, side) == offline.text
        assert page.locator(f"#side-{side} .seg-text .tok").count() == len(offline.tokens)
        expect(page.locator(f"#side-{side} .seg-figures")).to_contain_text("tokens per forward")
        expect(page.locator(f"#side-{side} .seg-split")).to_be_visible()
    expect(page.locator("#verdict")).to_contain_text("Both wrote the same tokens.")
    assert page.locator("#side-left .tok.draft[data-step]").count() > 0

    # A step: the tree has a node for each token that its button tells of.
    button = page.locator("#side-left .seg-strip button").filter(has_not_text=re.compile("^0$")).first
    told = re.match(r"step (\d+): (\d+) of (\d+) drafts", button.get_attribute("aria-label") or "")
    assert told is not None
    button.click()
    said = page.locator("#tree-left .seg-said")
    expect(said).to_contain_text(f"Step {told[1]}:", timeout=SECONDS)
    assert page.locator("#tree-left .node").count() == int(told[3]) + 1
    assert page.locator("#tree-left .node.accepted").count() >= int(told[2]) > 0
    expect(page.locator("#side-left .seg-strip button[aria-pressed]")).to_have_count(1)
    page.locator("#side-left .tok[data-step='0']").first.click()  # a token leads to its step too
    expect(said).to_contain_text("Step 1:", timeout=SECONDS)
    shot = tmp_path / "ui.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 20_000
    kept(page, "ui.png")

    page.get_by_role("tab", name="Methods").click()
    expect(page.locator("#methods tbody tr").first).to_be_visible()
    fill(page, "filter", "lookahead tree")
    expect(page.locator("#methods tbody")).not_to_contain_text("contrastive_search", timeout=SECONDS)
    expect(page.locator("#methods tbody")).to_contain_text("lookahead")
    page.get_by_role("tab", name="Bench reports").click()
    frame = page.frame_locator("#reports iframe")
    expect(frame.locator("h1")).to_have_text("A report", timeout=SECONDS)  # its script would have taken that away
    kept(page, "ui-report.png")


def test_what_is_wrong_is_said_on_the_page_and_stop_stops(page: Page, lm: Model) -> None:
    fill(page, "prompt", NASTY)
    pick(page, "left", "prompt_lookup")
    fill(page, "fields-left", "max_ngram=<b>two</b>")
    page.locator("#run").click()
    expect(page.locator("#side-left .seg-trouble")).to_contain_text("<b>two</b>", timeout=SECONDS)
    fill(page, "fields-left", "")
    fill(page, "max-tokens", "12")
    run(page)
    assert text(page, "left") == text(page, "right") == lm.generate(NASTY, "plain", max_tokens=12).text
    assert page.title() == "Segue"

    pick(page, "left", "rest")  # needs a datastore
    run_button = page.locator("#run")
    run_button.click()
    expect(page.locator("#side-left .seg-trouble")).to_contain_text("segue index build", timeout=SECONDS)
    expect(page.locator("#side-right .seg-state")).to_contain_text("finished", timeout=SECONDS)

    pick(page, "left", SLOW)
    fill(page, "fields-left", SLOWLY)
    fill(page, "prompt", PROMPT)
    fill(page, "max-tokens", "1000")
    run_button.click()
    expect(page.locator("#side-left .seg-state")).to_contain_text("writing", timeout=SECONDS)
    page.locator("#stop").click()
    expect(page.locator("#verdict")).to_contain_text("Stopped", timeout=SECONDS)
    fill(page, "fields-left", "")
    fill(page, "prompt", " ")
    run_button.click()
    expect(page.locator("#verdict .seg-trouble")).to_contain_text("prompt is empty", timeout=SECONDS)
    assert "Traceback" not in (page.locator("body").text_content() or "")


def test_a_closed_page_makes_room_for_the_next(browser: Browser, page: Page, url: str) -> None:
    other = browser.new_page()
    other.set_default_timeout(SECONDS)
    other.goto(url)
    pick(other, "left", SLOW)
    fill(other, "fields-left", SLOWLY)
    fill(other, "max-tokens", "1000")
    other.locator("#run").click()
    expect(other.locator("#side-left .seg-state")).to_contain_text("writing", timeout=SECONDS)
    fill(page, "max-tokens", "4")
    page.locator("#run").click()
    expect(page.locator("#verdict")).to_contain_text("Waiting: 1 run before this one.", timeout=SECONDS)
    other.close()
    expect(page.locator("#verdict .seg-verdict")).to_be_visible(timeout=SECONDS)
