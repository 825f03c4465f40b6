"""Sketch-guided decoding: a black box on this machine, constraints that others can read back, and its errors."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.api import Model
from segue.choose.constrain import sketch_guided
from segue.choose.constrain.sketch_guided import SketchGuided
from segue.data import ConstraintError
from segue.laws.base import LawBroken
from segue.laws.targets.sketch_guided import hold
from segue.laws.worlds import network_world

ENTITIES = ["Marie Curie", "Warsaw", "Paris", "Pierre Curie"]
RELATIONS = ["place of birth", "spouse", "country"]


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


class BlackBox(ThreadingHTTPServer):
    """Answers every chat with the same text, and remembers what it was asked."""

    answer = "She was born in Warsaw."
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[dict[str, Any], str | None]] = []
        self.together = threading.Barrier(3, timeout=20)
        self.meets = False


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        box: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        box.asked.append((body, self.headers.get("Authorization")))
        if box.meets:
            box.together.wait()
        data = json.dumps({"choices": [{"message": {"content": box.answer}}]}).encode()
        self.send_response(box.status if self.path == "/v1/chat/completions" else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def box() -> Iterator[BlackBox]:
    with BlackBox() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def at(box: BlackBox, **fields: Any) -> SketchGuided:
    return SketchGuided(url=f"http://127.0.0.1:{box.server_port}/v1", model="strong", **fields)


def test_the_black_box_is_asked_and_its_draft_is_read(
    model: Model, box: BlackBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    answer = model.generate("Where was she born?", method=at(box), choices=["Paris", "Warsaw"], max_tokens=8)
    (asked, key), *more = box.asked
    assert not more
    assert asked == {
        "model": "strong",
        "messages": [{"role": "user", "content": "Where was she born?"}],
        "max_tokens": 256,
    }
    assert key == "Bearer secret"
    assert answer.text in ("Paris", "Warsaw")
    assert answer.trace[0]["sketch"] == box.answer
    drafted = model.generate(
        "Where was she born?\nDraft: She was born in Warsaw.\nRevised:",
        method="plain",
        choices=["Paris", "Warsaw"],
        max_tokens=8,
    )
    assert drafted.tokens == answer.tokens


def test_a_batch_asks_its_questions_at_once(model: Model, box: BlackBox) -> None:
    """Each answer waits until three questions are there."""
    box.meets = True
    answers = model.generate(["a", "b", "c"], method=at(box), choices=["yes", "no"], max_tokens=4)
    assert all(answer.text in ("yes", "no") for answer in answers)


def test_triples_are_over_the_closed_lists(model: Model, tmp_path: Path) -> None:
    entities, relations = tmp_path / "entities.txt", tmp_path / "relations.txt"
    entities.write_text("\n".join(ENTITIES))
    relations.write_text("\n".join(RELATIONS) + "\n\n")
    sketches = [
        "Marie Curie was born in Warsaw.",
        "[s] Marie Curie [r] spouse [o] Pierre Curie [e]",
        "nonsense [s] [s]",
    ]
    for sketch in sketches:
        method = SketchGuided(sketch=sketch, entities=str(entities), relations=str(relations), beams=2)
        text = model.generate("Triples of the text.", method=method, max_tokens=48).text
        while text:  # a reader of its own
            found = re.match(r" ?\[s\] (.+?) \[r\] (.+?) \[o\] (.+?) \[e\]", text)
            assert found, text
            assert found[1] in ENTITIES
            assert found[2] in RELATIONS
            assert found[3] in ENTITIES
            text = text[found.end() :]
        free = model.generate(f"Triples.\nDraft: {sketch}\nRevised:", method="plain", max_tokens=48).text
        assert not re.fullmatch(r"( \[s\] .+? \[r\] .+? \[o\] .+? \[e\])+", free)


def test_trees_have_the_words_of_the_sentence(model: Model) -> None:
    sentence = "the old dog sleeps"
    method = SketchGuided(sketch="(S (NP the old dog) (VP sleeps))", sentence=sentence)
    text = model.generate("Parse: " + sentence, method=method, max_tokens=120).text.strip()
    stack: list[int] = []
    for bracket in re.findall(r"[()]", text):  # balanced, and one tree
        stack.append(1) if bracket == "(" else stack.pop()
    assert not stack
    assert text.startswith("(")
    assert re.findall(r"\([^ ()]+ ([^ ()]+)\)", text) == sentence.split()


def test_a_draft_that_is_valid_becomes_likelier(model: Model) -> None:
    """Every answer is likelier behind a draft that says it than behind drafts that say something else."""
    words = ("the red house by the river", "a green boat with a sail", "my old friend from the city")
    logp: dict[tuple[str, str], float] = {}
    for sketch in words:
        method = SketchGuided(sketch=sketch, beams=4)
        answer = model.generate("Is it so?", method=method, choices=[" " + w for w in words], max_tokens=16)
        assert answer.candidates
        logp |= {(sketch, c.text.strip()): c.logp for c in answer.candidates}
    for word in words:
        assert max(words, key=lambda sketch: logp[sketch, word]) == word


def test_trouble_with_the_black_box_is_told(model: Model, box: BlackBox) -> None:
    box.status = 429
    with pytest.raises(ValueError, match=r"refused the request \(429\)"):
        model.generate("a", method=at(box), choices=["yes", "no"], max_tokens=4)
    with pytest.raises(ValueError, match="gave no sketch"):
        model.generate(
            "a", method=SketchGuided(url="http://127.0.0.1:9/v1", model="m"), choices=["yes", "no"], max_tokens=4
        )
    for bad in ({"url": "host", "model": "m"}, {"sketch": "a", "revise": "b"}, {"sketch": "a", "beams": 0}):
        with pytest.raises(ValueError, match=r"is not allowed|are needed|are allowed"):
            SketchGuided(**bad)
    with pytest.raises(ConstraintError, match="rewrites under a constraint"):
        model.generate("a", method=SketchGuided(sketch="b"), max_tokens=4)
    with pytest.raises(ValueError, match="has no sketch"):
        model.generate("a", method="sketch_guided", max_tokens=4)
    with pytest.raises(ValueError, match=r"nowhere.txt cannot be read as a list"):
        model.generate(
            "a", method=SketchGuided(sketch="b", entities="nowhere.txt", relations="nowhere.txt"), max_tokens=4
        )


def test_a_sketch_that_is_not_read_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    world = network_world("llama")
    hold(SketchGuided(), world)
    prefill = sketch_guided.Prefill
    monkeypatch.setattr(sketch_guided, "Prefill", lambda s, words, want: prefill(s, words[:1], want))
    with pytest.raises(LawBroken):
        hold(SketchGuided(), world)
