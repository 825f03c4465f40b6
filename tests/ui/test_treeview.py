"""Pictures against the tree they are of: read as XML, counted and measured."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html import unescape
from itertools import pairwise

import pytest

from segue.ui.treeview import ACROSS, DOWN, panel, shown, svg
from segue.ui.watch import Step

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert(1)</script>&\"'"


def step(parents: list[int], path: list[int], own: int | None = 99, window: tuple[int, ...] = ()) -> Step:
    count = len(parents)
    flags = tuple(node in window for node in range(count))
    return Step(tuple(range(count)), tuple(parents), flags, (0.5,) * count, ("a",) * count, tuple(path), 0, 1, own)


def groups(picture: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(picture).findall(SVG + "g")


def places(picture: str) -> dict[str, tuple[float, float]]:
    """Where the box of each node lies, by the token that it shows."""
    found = {}
    for group in groups(picture):
        box, word = group.find(SVG + "rect"), group.find(f"{SVG}text")
        assert box is not None
        assert word is not None
        found[str(word.text).removeprefix("✓ ").removeprefix("→ ")] = float(box.get("x", "")), float(box.get("y", ""))
    return found


def random_step(seed: int) -> Step:
    rng = random.Random(seed)
    parents = [-1, *(rng.randrange(node) for node in range(1, rng.randint(2, 70)))]
    path = [0]
    while (below := [n for n in range(1, len(parents)) if parents[n] == path[-1]]) and rng.random() < 0.7:
        path.append(rng.choice(below))
    return step(parents, path)


@pytest.mark.parametrize("seed", range(12))
def test_every_node_is_drawn_once_and_for_what_it_is(seed: int) -> None:
    one = random_step(seed)
    found = groups(svg(one, str))
    kinds = Counter(str(group.get("class")) for group in found)
    count = len(one.tokens)
    assert sum(kinds[kind] for kind in kinds if kind.startswith("node ")) == count
    assert kinds["node root"] == 1
    assert kinds["node accepted"] == len(one.path) - 1
    assert kinds["node rejected"] == count - len(one.path)
    assert kinds["own"] == 1
    edges = ElementTree.fromstring(svg(one, str)).findall(SVG + "path")
    assert len(edges) == count  # one to each node but the root, and one to the model's own token
    assert sum(edge.get("class") == "edge kept" for edge in edges) == len(one.path)


@pytest.mark.parametrize("seed", range(12))
def test_no_two_boxes_touch_and_depth_is_the_column(seed: int) -> None:
    one = random_step(seed)
    at = places(svg(one, str))
    assert len(set(at.values())) == len(at) == len(one.tokens) + 1
    depth = [0]
    for node in range(1, len(one.tokens)):
        depth.append(depth[one.parents[node]] + 1)
        assert at[str(node)][1] >= at[str(one.parents[node])][1]
    assert all(at[str(node)][0] - at["0"][0] == depth[node] * ACROSS for node in range(len(depth)))
    own = at["99"]
    assert own[0] - at[str(one.path[-1])][0] == ACROSS
    rows = sorted(at.values())
    for (x, y), (right, below) in pairwise(rows):
        assert x != right or below - y >= DOWN
    # No two edges of neighbouring columns cross: who stands above has the parent that does not stand below.
    for a in range(1, len(depth)):
        for b in range(1, len(depth)):
            if depth[a] == depth[b] and at[str(a)][1] < at[str(b)][1]:
                assert at[str(one.parents[a])][1] <= at[str(one.parents[b])][1]


def test_a_picture_as_big_as_what_is_in_it() -> None:
    picture = ElementTree.fromstring(svg(step([-1, 0, 1, 0], [0, 1]), str))
    wide, high = float(picture.get("width", "")), float(picture.get("height", ""))
    for box in picture.iter(SVG + "rect"):
        values = {name: float(box.get(name, "")) for name in ("x", "y", "width", "height")}
        assert 0 <= values["x"] <= wide - values["width"]
        assert 0 <= values["y"] <= high - values["height"]


def test_nodes_that_are_only_read_back() -> None:
    one = step([-1, 0, 0, 2], [0], window=(2, 3))
    kinds = Counter(str(group.get("class")) for group in groups(svg(one, str)))
    assert kinds == {"node root": 1, "node rejected": 1, "node window": 2, "own": 1}
    assert "1 drafted by a, 0 accepted, 2 more only read back" in panel(one, 6, str)
    assert "Step 7:" in panel(one, 6, str)


def test_scores_and_who_drafted() -> None:
    one = step([-1, 0, 0], [0, 1])
    one = Step(one.tokens, one.parents, one.scored_only, (1.0, 0.25, 0.75), ("", "a", "b"), one.path, 0, 1, 9)
    below = [group.findall(SVG + "text")[1].text for group in groups(svg(one, str))]
    assert below == ["pending", "0.25 a", "0.75 b", "the model"]
    assert "2 drafted by a, b, 1 accepted" in panel(one, 0, str)


def test_nothing_of_a_model_becomes_markup() -> None:
    one = step([-1, 0], [0, 1])
    one = Step(one.tokens, one.parents, one.scored_only, one.score, (NASTY, NASTY), one.path, 0, 1, 9)
    picture = panel(one, 0, lambda token: NASTY)
    assert "<script" not in picture
    titles = [title.text for title in ElementTree.fromstring(picture).iter(SVG + "title")]
    assert sum(shown(NASTY) in str(title) for title in titles) == 3
    assert NASTY in unescape(picture)


def test_no_own_token_where_the_text_ended_before_it() -> None:
    assert not [group for group in groups(svg(step([-1, 0], [0, 1], own=None), str)) if group.get("class") == "own"]


def test_a_path_that_nobody_could_follow() -> None:
    kinds = Counter(str(group.get("class")) for group in groups(svg(step([-1, 0], []), str)))
    assert kinds == {"node root": 1, "node rejected": 1}
