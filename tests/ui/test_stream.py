"""A side's HTML: what its text says, where each token is said to come from, and that nothing in it is markup."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest
import torch

from segue.api import Model
from segue.data import Stats
from segue.ui import stream
from segue.ui.asked import Form, requests
from segue.ui.race import Race, Split
from segue.ui.watch import Origin, Step
from tests.ui.conftest import PROMPT

NASTY = ['<script>alert("x")</script>', "&lt;b&gt;", "' onclick='x", "${alert(1)}", "{{value}}"]


class Reader(HTMLParser):
    """What a browser would make of it: its tags, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_is_text() -> None:
    origins = [Origin(0, source) for source in NASTY]
    page = Reader(stream.text(NASTY, origins, {source: i for i, source in enumerate(NASTY)}))
    assert page.text == "".join(NASTY)
    assert {tag for tag, _ in page.tags} == {"div", "span"}
    spans = [attributes for tag, attributes in page.tags if tag == "span"]
    assert [span["title"] for span in spans] == [f"{source}, step 1" for source in NASTY]
    assert all(set(span) == {"class", "data-step", "title"} for span in spans)
    assert Reader(stream.trouble(NASTY[0])).text == f"⚠ {NASTY[0]}"
    assert "script" not in {tag for tag, _ in Reader(stream.legend(origins, dict.fromkeys(NASTY, 0), 1)).tags}


def test_marks_say_where_a_token_comes_from() -> None:
    origins = [Origin(None, None), Origin(0, "a"), Origin(0, "b"), Origin(0, None), Origin(1, "a")]
    page = Reader(stream.text(["one", "two", "three", "\n", ""], origins, {"b": 0, "a": 1}))
    spans = [attributes for tag, attributes in page.tags if tag == "span"]
    classes = [span["class"] for span in spans]
    assert classes == ["tok own", "tok draft s1", "tok draft s0", "tok own nl", "tok draft s1 mute"]
    assert [span.get("data-step") for span in spans] == [None, "0", "0", "0", "1"]
    legend = Reader(stream.legend(origins, {"b": 0, "a": 1}, 7)).text
    assert legend == "the model itself 2b 1a 2rejected drafts 7"


def test_a_strip_has_a_button_for_each_step() -> None:
    tree = (0, 0, 0, 0, 0)
    steps = [
        Step(tree, (-1, 0, 1, 2, 3), (False,) * 5, (1.0,) * 5, ("a",) * 5, (0, 1), 1, 2, 7),
        Step((0,), (-1,), (False,), (1.0,), ("",), (0,), 3, 1, 7),
    ]
    page = Reader(stream.strip(steps, 1))
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert [button["data-step"] for button in buttons] == ["0", "1"]
    assert [button.get("aria-pressed") for button in buttons] == [None, "true"]
    assert buttons[0]["aria-label"] == "step 1: 1 of 4 drafts accepted, 2 tokens"
    bars = [attributes["style"] for tag, attributes in page.tags if tag in ("i", "b")]
    assert bars == ["height:30.0px", "height:7.5px", "height:0.0px", "height:0.0px"]


def test_the_parts_of_the_time_are_its_shares() -> None:
    page = stream.split(Split(0.5, 0.25, 1.0, 0.25), 2.0)
    assert [float(width) for width in re.findall(r"width:([\d.]+)%", page)] == [25.0, 12.5, 50.0, 12.5]
    assert "drafting 0.25 s" in page


def test_figures() -> None:
    stats = Stats(tokens=10, target_forwards=6, prefill_forwards=2, drafted=8, accepted=5, draft_forwards=3)
    text = Reader(stream.figures(stats, 4.0)).text
    assert "tokens per forward2.00" in text  # a prefill counts as one forward
    assert "drafts accepted62% of 8" in text
    assert "forwards6 + 3 draft" in text
    assert "tokens a second2.5" in text
    assert "none drafted" in stream.figures(Stats(), 0.0)


@pytest.fixture(scope="module")
def race(lm: Model) -> Race:
    race = Race(lm, requests(Form(PROMPT, ("token_recycling", "plain"), ("", ""), 24, 0, 0), lm))
    with torch.no_grad():
        race.drive()
    return race


def test_a_side_shows_the_answer(lm: Model, race: Race) -> None:
    offline = lm.generate(PROMPT, "plain", max_tokens=24)
    palette: dict[str, int] = {}
    for side in race.sides:
        page = stream.side(side, palette, state="over")
        inner = re.search(r'<div class="seg-text">(.*?)</div>', page, re.DOTALL)
        assert inner is not None
        assert unescape(re.sub(r"<[^>]*>", "", inner[1])) == offline.text
        assert page.count('class="tok own') + page.count('class="tok draft') == len(offline.tokens) + 1 + len(
            {o.source for o in side.log.origins} - {None}
        )  # every token, and the samples of the legend
        assert page.count("<button") == len(side.log.steps)
    assert "finished" in page
    verdict = stream.verdict(*race.sides)
    assert 'data-same="true"' in verdict
    assert "Both wrote the same tokens." in verdict


def test_a_verdict_tells_where_texts_part(lm: Model) -> None:
    form = Form(PROMPT, ("plain", "plain"), ("", ""), 12, 5.0, None)
    race = Race(lm, requests(form, lm))
    assert stream.verdict(*race.sides) == ""
    with torch.no_grad():
        race.drive()
    left, right = (side.completion for side in race.sides)
    assert left is not None
    assert right is not None
    first = next(i for i, (a, b) in enumerate(zip(left.tokens, right.tokens, strict=False)) if a != b)
    assert f"Their texts part at token {first + 1}." in stream.verdict(*race.sides)
