"""The dependency graph and its page. That the iterates are right is shown in tests/decode/parallel/test_jacobi.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from segue.bench.dependency import Graph, data, shown, trace
from segue.bench.dependency_page import page
from segue.data import Settings
from segue.decode.parallel.jacobi import Jacobi
from segue.decode.plain import Plain
from segue.decode.speculative.lookahead import Lookahead
from segue.laws.suite import repetitive
from segue.laws.worlds import World, network_world
from segue.models.transformers.load import load

VOID = {"meta", "link", "br", "img", "input", "hr"}
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


class Page(HTMLParser):
    """Reads a page: every element must be closed in order; collects the rows of its table and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.rows: list[list[tuple[str, dict[str, str], str]]] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attributes}
        assert len(known) == len(attributes)
        self.names.add(tag)
        self.loads += [f"{tag} {name}" for name in known if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((tag, known, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if "style" not in self.open:
            self.text += text
        if "td" in self.open or "th" in self.open:
            tag, known, before = self.rows[-1][-1]
            self.rows[-1][-1] = (tag, known, before + text)


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("gpt2")


@pytest.fixture(scope="module")
def graph(world: World) -> Graph:
    return trace(world.lm, Jacobi(mode="jacobi"), repetitive(world), Settings(max_tokens=20))


@pytest.fixture(scope="module")
def told(world: World, graph: Graph) -> dict[str, Any]:
    return data(graph, world.lm, repetitive(world), {"mode": "jacobi"})


def test_the_figures_fit_the_iterates(graph: Graph, told: dict[str, Any]) -> None:
    assert (told["iterations"], told["plain_iterations"]) == (graph.iterations, 19)
    assert told["saved"] == 19 - told["iterations"] > 5
    assert len(told["iterates"]) == told["iterations"] + 1
    early = [i for i in range(20) if any(y["right"][i] and i >= y["settled"] for y in told["iterates"])]
    assert set(told["early"]) <= set(early)
    assert told["iterates"][-1]["settled"] == 20
    assert told["iterates"][-1]["tokens"] == told["tokens"]
    assert told["iterates"][0]["right"][0]
    json.dumps(told)


def test_probabilities_are_those_of_the_model_over_the_guess_before(world: World, graph: Graph) -> None:
    prompt = repetitive(world)
    compared = 0
    for before, y in zip(graph.iterates, graph.iterates[1:], strict=False):
        for place in range(before.settled, len(y.tokens)):
            read = [token for token in before.tokens[:place] if token is not None]
            answer = world.oracle.answer([*prompt, *read], Settings(max_tokens=1))
            p = float(torch.softmax(answer.logits[0].double(), -1)[y.tokens[place]])
            assert y.p[place] == pytest.approx(p, abs=1e-4)
            compared += 1
    assert compared > 40
    # Nobody was asked about the first guess.
    assert graph.iterates[0].p[1:] == [None] * 19


def test_a_blockwise_graph_has_empty_places_and_plain_decoding_none_to_guess(world: World) -> None:
    blocks = trace(world.lm, Jacobi(block=4), world.prompts[1], Settings(max_tokens=12))
    assert blocks.iterates[0].tokens[1:4] == [0, 0, 0]
    assert blocks.iterates[0].tokens[4:] == [None] * 8
    plain = trace(world.lm, Plain(), world.prompts[1], Settings(max_tokens=12))
    assert plain.answer.tokens == blocks.answer.tokens
    assert (plain.saved, plain.early, plain.iterations) == (0, [], 11)


def test_one_token_takes_no_iteration(world: World) -> None:
    graph = trace(world.lm, Jacobi(), world.prompts[1], Settings(max_tokens=1))
    assert (graph.iterations, graph.saved, graph.early, graph.right) == (0, 0, [], [[True]])
    told = data(graph, world.lm, world.prompts[1], {})
    assert len(Page(page(told, "")).rows) == 2


def test_only_chains_can_be_shown(world: World) -> None:
    with pytest.raises(ValueError, match="only chains can be shown"):
        trace(world.lm, Lookahead(), world.prompts[1], Settings(max_tokens=12), name="lookahead")


def test_the_page_is_one_whole_table_and_loads_nothing(told: dict[str, Any]) -> None:
    html = page(told, "segue view jacobi x")
    seen = Page(html)
    assert seen.loads == []
    assert not seen.names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"url\(|@import|https?:", html)
    assert "prefers-color-scheme:dark" in html
    head, *rows = seen.rows
    assert [cell[2] for cell in head] == ["iteration", *(f"{i}{text}" for i, text in enumerate(told["texts"]))]
    assert all(tag == "th" and known["scope"] == "col" for tag, known, _ in head)
    assert len(rows) == told["iterations"] + 1
    for number, (row, y) in enumerate(zip(rows, told["iterates"], strict=True)):
        (tag, known, label), *cells = row
        assert (tag, known["scope"], label) == ("th", "row", str(number))
        assert len(cells) == 20
        for place, (_, known, text) in enumerate(cells):
            if y["tokens"][place] is None:
                assert (text, known["title"].partition(": ")[2]) == ("", "not guessed yet")
                continue
            kind = known["class"].split()[0]
            sign, meaning = {"settled": ("", "settled"), "early": ("▲ ", "right before its turn"),
                             "wrong": ("· ", "still wrong")}[kind]  # fmt: skip
            # Told by a sign and in words, not by colour only.
            assert text == sign + y["texts"][place]
            assert meaning in known["title"]
            assert known["title"].startswith(f"iteration {number}, position {place}: ")
            assert (kind == "settled") == (place < y["settled"])
            assert kind != "early" or y["right"][place]
            assert ("turn" in known["class"].split()) == (place == number)
            assert ("style" in known) == (y["p"][place] is not None)
    assert {"▲", "·"} <= set(seen.text)
    assert f"20 tokens in {told['iterations']} iterations" in seen.text
    assert f"{told['iterations']} (plain decoding: 19)" in seen.text


def test_whatever_is_in_texts_stays_text() -> None:
    hostile = "</td><script>alert('x')</script>&amp;\"'{{ 7*7 }}"
    y = {"settled": 1, "tokens": [1], "texts": [hostile], "p": [0.5], "right": [True]}
    told = {
        "model": hostile, "settings": {"guess": hostile}, "prompt": hostile, "text": hostile, "finish_reason": "stop",
        "tokens": [1], "texts": [hostile], "iterations": 0, "plain_iterations": 0, "saved": 0, "early": [],
        "iterates": [y],
    }  # fmt: skip
    html = page(told, hostile)
    seen = Page(html)
    assert "<script" not in html
    assert seen.rows[1][1][2] == hostile
    assert f"“{hostile}”" in seen.rows[1][1][1]["title"]
    assert seen.text.count(hostile) >= 6
    assert "49" not in html.split("</style>")[1]


def test_blanks_can_be_seen() -> None:
    lm = load("mini")
    tokens = {text: lm.encode(text, special=False) for text in (" the", "\n")}
    assert shown(lm, tokens[" the"][0]) == "␣the"
    assert shown(lm, tokens["\n"][-1]) == "↵"
    assert shown(lm, int(lm.tokenizer.pad_token_id)) == lm.tokenizer.pad_token
    lm.tokenizer = None
    assert shown(lm, 7) == "#7"


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_a_browser_shows_the_same_table(told: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(told, ""), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    dom = subprocess.run([CHROMIUM, *flags, f"file://{file}"], capture_output=True, text=True, timeout=120, check=True)
    rows = [[cell[2] for cell in row] for row in Page(dom.stdout).rows]
    assert rows == [[cell[2] for cell in row] for row in Page(file.read_text(encoding="utf-8")).rows]
