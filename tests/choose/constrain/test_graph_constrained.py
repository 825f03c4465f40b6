"""Graph-constrained decoding on real commands: the network's own best of the list, tags, and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import segue
from segue import catalog
from segue.api import Model
from segue.choose.constrain.graph_constrained import GraphConstrained
from segue.data import ConstraintError
from segue.laws.base import LawBroken
from segue.laws.targets.graph_constrained import hold
from segue.laws.worlds import toy_world
from segue.models.constraint import spelling
from segue.models.source import EMBEDDED
from segue.ops.automaton import Graph
from tests.mutation import mutate

DATA = Path(__file__).parents[2] / "data" / "commands.jsonl"
COMMANDS = [json.loads(line) for line in DATA.read_text().splitlines()]
QUESTIONS = [f"# {COMMANDS[i]['text']}\n$ " for i in (0, 30, 50)]
ROOM = 40


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")


@pytest.fixture
def listed(tmp_path: Path) -> str:
    path = tmp_path / "commands.txt"
    path.write_text("".join(command["command"] + "\n" for command in COMMANDS))
    return str(path)


@pytest.fixture
def tagged(tmp_path: Path) -> str:
    path = tmp_path / "tagged.txt"
    path.write_text("".join(f"{command['page']}\t{command['command']}\n" for command in COMMANDS))
    return str(path)


@pytest.fixture(scope="module")
def network() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / "mini", dtype=torch.float32)


def ranked(model: Model, network: Any, prompt: str) -> list[tuple[float, str]]:
    """Every command with the network's log-probability of it and an end, by a forward pass of its own."""
    before = model.encode(prompt)
    found = []
    for command in dict.fromkeys(c["command"] for c in COMMANDS):
        ids = [*spelling(command, model.lm), *model.lm.eos_ids]
        with torch.no_grad():
            logp = network(torch.tensor([before + ids]), use_cache=False).logits[0].log_softmax(-1)
        found.append((sum(float(logp[len(before) + i - 1, token]) for i, token in enumerate(ids)), command))
    return sorted(found, reverse=True)


def test_the_exact_search_finds_the_networks_own_best_of_the_list(model: Model, network: Any, listed: str) -> None:
    for prompt in QUESTIONS[1:]:
        best = ranked(model, network, prompt)[:5]
        for together, held in ((1, 1), (4, 8)):
            method = GraphConstrained(file=listed, together=together, held=held)
            answer = model.generate(prompt, method=method, max_tokens=ROOM)
            assert [c.text for c in answer.candidates or []] == [text for _, text in best]
            assert [c.score for c in answer.candidates or []] == pytest.approx([logp for logp, _ in best], abs=1e-3)
            assert [c.logp for c in answer.candidates or []] == pytest.approx([logp for logp, _ in best], abs=1e-3)
            assert answer.text == best[0][1]
            assert answer.finish_reason == "stop"


def test_the_papers_search_is_an_approximation_that_reads_more(model: Model, listed: str) -> None:
    """It never finds anything better, always something legal, and the best one here."""
    texts = {command["command"] for command in COMMANDS}
    worse = 0
    for prompt in QUESTIONS:
        exact, graph = (
            model.generate(prompt, method=GraphConstrained(file=listed, search=search), max_tokens=ROOM)
            for search in ("exact", "graph")
        )
        assert exact.candidates
        assert graph.candidates
        assert {c.text for c in graph.candidates} <= texts
        assert exact.text == graph.text
        pairs = list(
            zip(sorted(c.score for c in exact.candidates), sorted(c.score for c in graph.candidates), strict=True)
        )
        assert all(a >= b - 1e-3 for a, b in pairs)
        worse += any(a > b + 1e-2 for a, b in pairs)
        assert int(exact.stats.note.split()[0]) < int(graph.stats.note.split()[0])
    assert worse


def test_a_run_without_a_choice_is_read_in_one_forward(model: Model) -> None:
    only = model.generate("$ ", method="graph_constrained", choices=["git branch --merged --all"], max_tokens=ROOM)
    assert only.text == "git branch --merged --all"
    assert only.stats.target_forwards == 2


def test_a_tag_is_the_models_choice_or_fixed(model: Model, tagged: str) -> None:
    free = model.generate(QUESTIONS[0], method=GraphConstrained(file=tagged, paths=60), max_tokens=ROOM)
    fixed = model.generate(QUESTIONS[0], method=GraphConstrained(file=tagged, paths=60, tag="find"), max_tokens=ROOM)
    assert free.candidates
    assert fixed.candidates
    assert {c.text for c in free.candidates} == {f"{c['page']} {c['command']}" for c in COMMANDS}
    assert {c.text for c in fixed.candidates} == {f"find {c['command']}" for c in COMMANDS if c["page"] == "find"}
    # The tag is part of what is scored: one list is the other one, with the rest left out.
    mine = [c for c in free.candidates if c.text.startswith("find find")]
    assert [c.text for c in fixed.candidates] == [c.text for c in mine]
    assert [c.score for c in fixed.candidates] == pytest.approx([c.score for c in mine], abs=1e-3)


def test_a_grammar_is_searched_in_all_tokenisations_and_a_cycle_only_exactly(model: Model) -> None:
    answer = model.generate("The year is ", method=GraphConstrained(paths=3), regex="(19|20)[0-9]{2}", max_tokens=6)
    assert answer.candidates
    assert all(c.text[:2] in ("19", "20") and len(c.text) == 4 for c in answer.candidates)
    lm = model.lm
    loop = Graph(lm.vocab_size, lm.eos_ids, [("a", [5], "a"), ("a", [6], "b")], "a", ["b"])
    assert model.generate("x", method=GraphConstrained(), constraint=loop, max_tokens=4).candidates
    with pytest.raises(ValueError, match="graph without cycles: take search=exact"):
        model.generate("x", method=GraphConstrained(search="graph"), constraint=loop, max_tokens=4)


def test_a_search_that_finds_no_end_gives_what_is_sure_or_an_error(model: Model, listed: str) -> None:
    """A regular expression of endless texts has no likeliest that could be proved in time."""
    endless = "[a-z ]+[0-9]"
    with pytest.raises(ConstraintError, match=r"no output was settled as the likeliest within reads=40 beginnings"):
        model.generate(QUESTIONS[0], method=segue.method("graph_constrained", reads=40), regex=endless, max_tokens=30)
    whole = model.generate(QUESTIONS[1], method=segue.method("graph_constrained", file=listed), max_tokens=ROOM)
    assert whole.candidates is not None
    for reads in (80, 200, 400):
        method = segue.method("graph_constrained", file=listed, reads=reads)
        try:
            some = model.generate(QUESTIONS[1], method=method, max_tokens=ROOM)
        except ConstraintError:
            continue
        assert some.candidates is not None
        assert some.candidates == whole.candidates[: len(some.candidates)]


def test_what_cannot_be_done_is_said(model: Model, listed: str, tagged: str, tmp_path: Path) -> None:
    def ask(method: Any, **settings: Any) -> None:
        model.generate("$ ", method=method, **{"max_tokens": ROOM, **settings})

    with pytest.raises(ConstraintError, match="needs a list of legal outputs: give file=FILE"):
        ask(GraphConstrained())
    with pytest.raises(ConstraintError, match="two constraints"):
        ask(GraphConstrained(file=listed), choices=["a"])
    with pytest.raises(ConstraintError, match="cannot be satisfied within max_tokens=1: its shortest text has"):
        ask(GraphConstrained(file=listed), max_tokens=1)
    with pytest.raises(ValueError, match=r"tag='rm' is on no line of .*: it has chmod, curl, docker"):
        ask(GraphConstrained(file=tagged, tag="rm"))
    with pytest.raises(ValueError, match=r"nowhere.txt' cannot be read: No such file"):
        ask(GraphConstrained(file="nowhere.txt"))
    with pytest.raises(ValueError, match="lift a token above probability 1"):
        ask(GraphConstrained(file=listed), logit_bias={spelling("git log", model.lm)[0]: 50.0})
    with pytest.raises(ValueError, match="ignore_eos=True cannot be combined with constraint"):
        ask(GraphConstrained(file=listed), ignore_eos=True)
    wrong = tmp_path / "wrong.txt"
    for content, match in (
        (b"git log\n\xffgit\n", "line 2 is not UTF-8: byte 0xff"),
        (b"git log\n\ngit\t\n", "line 3: .* is not an output"),
        (b"a\tb\tc\n", "line 1: .* is not an output"),
        (b"\n \n", "has no legal output"),
    ):
        wrong.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            ask(GraphConstrained(file=str(wrong)))


def test_settings_are_checked_and_come_from_text() -> None:
    for bad in ({"paths": 0}, {"search": "wide"}, {"softmax": "some"}, {"tag": "git"}, {"held": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))}="):
            GraphConstrained(**bad)
    assert catalog.build("graph_constrained", file="f.txt", paths="3", normalise="true") == GraphConstrained(
        file="f.txt", paths=3, normalise=True
    )


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("_exact", "if whole and unread:", "if False:"),  # a whole output that something cheaper may still beat
        ("_exact", "cost - _checked(step.score)", "cost + 1.0"),
        ("_shortest", "if p[:spur] == root", "if len(p) > 99"),  # no edge is banned
        ("_shortest", "range(deviation, len(path) + 1)", "range(deviation, len(path))"),  # no spur at the end
        ("_path", "min(best.get(node, way), way)", "way"),  # the last way to a node, not the cheapest
    ],
)
def test_a_wrong_rule_breaks_the_law(monkeypatch: pytest.MonkeyPatch, function: str, old: str, new: str) -> None:
    world = toy_world(3, 2)
    hold(GraphConstrained(), world)
    mutate(monkeypatch, GraphConstrained, function, old, new)
    with pytest.raises(LawBroken):
        hold(GraphConstrained(), world)
