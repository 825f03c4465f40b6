"""The picture of a lattice: what is drawn is what was found. The lattice itself is the law's."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import segue
from segue.api import Model
from segue.bench.lattice import data, grown, passage, places, spelled
from segue.bench.lattice_page import page
from segue.choose.search.lattice import Lattice
from segue.data import Settings
from segue.laws.base import decode
from segue.laws.worlds import network_world

from .test_dependency import Page

MOST = 9


@pytest.fixture(scope="module")
def lattice() -> dict[str, Any]:
    """Of a network that says many things."""
    world = network_world("gpt2")
    method = Lattice(calls=90, ngram=1, gap=3, k=3)
    (answer,) = decode(world.lm, method, [world.prompts[1]], Settings(max_tokens=MOST))
    exported: dict[str, Any] = answer.trace[0]["lattice"]
    return exported


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


@pytest.fixture(scope="module")
def told(model: Model) -> dict[str, Any]:
    ids = model.encode("The capital of France is")
    method, settings = Lattice(calls=80), Settings(max_tokens=12)
    answer = grown(model.lm, method, ids, settings)
    return data(answer, model.lm, method, ids, settings, " the <b>capital</b> of the world & more")


def paths(lattice: dict[str, Any]) -> list[list[int]]:
    graph = nx.DiGraph((start, end) for start, end, _ in lattice["edges"])
    ends = {*lattice["ends"], *lattice["cuts"]}
    every = nx.all_simple_paths(graph, 0, ends, cutoff=MOST)
    return [path for path in every if path[-1] in lattice["ends"] or len(path) - 1 == MOST]


def test_texts_through_nodes_and_edges_are_counted_as_listing_them_does(lattice: dict[str, Any]) -> None:
    every = paths(lattice)
    logp = {(start, end): value for start, end, value in lattice["edges"]}
    assert len(every) > 50
    found = passage(lattice, MOST)
    assert found.nodes.keys() == set(range(len(lattice["tokens"])))
    assert found.edges.keys() == logp.keys()
    for node, through in found.nodes.items():
        mine = [path for path in every if node in path]
        sums = [sum(logp[pair] for pair in itertools.pairwise(path)) for path in mine]
        assert through.texts == len(mine)
        assert through.logp == pytest.approx(max(sums))
        assert list(through.nodes) in mine
    for pair, through in found.edges.items():
        assert through.texts == sum(pair in itertools.pairwise(path) for path in every)


def test_every_edge_leads_to_the_right_and_no_two_nodes_cover_each_other(lattice: dict[str, Any]) -> None:
    where = places(lattice)
    assert where[0][0] == 0
    assert len(set(where)) == len(where)
    assert all(where[start][0] < where[end][0] for start, end, _ in lattice["edges"])


def test_a_text_is_found_by_its_tokens(lattice: dict[str, Any]) -> None:
    for path in random.Random(0).sample(paths(lattice), 20):
        tokens = [lattice["tokens"][node] for node in path[1:]]
        found = spelled(lattice, tokens)
        assert [lattice["tokens"][node] for node in found[1:]] == tokens
    assert spelled(lattice, [-5]) == []


def test_the_data_are_those_of_the_answer(model: Model, told: dict[str, Any]) -> None:
    answer = model.generate("The capital of France is", method=Lattice(calls=80), max_tokens=12)
    assert answer.candidates is not None
    assert [c["text"] for c in told["candidates"]] == [c.text for c in answer.candidates]
    assert told["text"] == answer.text
    for name in ("texts", "paths", "merges", "calls"):
        assert told[name] == answer.trace[0][name]
    assert told["lattice_nodes"][0]["texts"] == told["paths"]
    for candidate in told["candidates"]:
        assert [told["lattice_nodes"][n]["token"] for n in candidate["nodes"][1:]] == candidate["tokens"]
    json.dumps(told)


def test_the_reference_is_met_as_nearly_as_any_text_does(told: dict[str, Any]) -> None:
    reference = told["reference"]
    assert reference["distance"] > 0
    tokens = [told["lattice_nodes"][n]["token"] for n in reference["nodes"][1:]]
    assert len(tokens) <= 12
    assert reference["distance"] >= abs(len(tokens) - len(reference["tokens"]))


def test_the_page_shows_everything_and_loads_nothing(told: dict[str, Any], tmp_path: Path) -> None:
    html = page(told, "segue view lattice 'x'")
    read = Page(html)
    assert read.loads == []
    assert html.count("<rect ") == len(told["lattice_nodes"])
    assert html.count('<path id="e') == len(told["lattice_edges"])
    assert "<b>capital</b>" not in html
    assert "&lt;b&gt;capital&lt;/b&gt; of the world &amp; more" in html
    for candidate in told["candidates"]:
        assert candidate["text"] in read.text
        assert f"{candidate['logp']:.2f}" in read.text
    for kind, way in (("best", told["candidates"][0]["nodes"]), ("ref", told["reference"]["nodes"])):
        assert len(re.findall(rf'<g [^>]*class="[^"]*\b{kind}\b', html)) == len(way)
        assert len(re.findall(rf'<path [^>]*class="[^"]*\b{kind}\b', html)) == len(way) - 1
    node = shutil.which("node")
    if node is not None:
        script = tmp_path / "page.js"
        script.write_text(html.split("<script>")[1].split("</script>")[0])
        subprocess.run([node, "--check", script], check=True, timeout=60)


def test_every_mark_that_the_script_sets_has_its_element(told: dict[str, Any]) -> None:
    html = page(told, "")
    for node in told["lattice_nodes"]:
        for start, end in itertools.pairwise(node["likeliest"]):
            assert f'id="e{start}-{end}"' in html
            assert f'id="n{end}"' in html
