"""Recall of a location in pages of real commands: word for word, at the network's own scores, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import segue
from segue import catalog
from segue.api import Model
from segue.choose.constrain.recall_location import RecallLocation
from segue.choose.parts.documents import Document, stored
from segue.data import ConstraintError, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.targets.recall_location import hold
from segue.laws.worlds import toy_world
from segue.models.source import EMBEDDED
from tests.mutation import mutate

DATA = Path(__file__).parents[2] / "data" / "commands.jsonl"
QUESTION = "Question: How do I see the history of a branch?"


def pages() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in DATA.read_text().splitlines():
        entry = json.loads(line)
        found[entry["page"]] = found.get(entry["page"], "") + f"{entry['text']} — «{entry['command']}» ✅\n"
    return found


PAGES = pages()


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")


@pytest.fixture(scope="module")
def network() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / "mini", dtype=torch.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "pages.jsonl"
    path.write_text("".join(json.dumps({"title": t, "text": text}) + "\n" for t, text in PAGES.items()))
    return str(path)


def mean_logp(network: Any, before: list[int], ids: list[int]) -> float:
    """Log-probability of some tokens divided by their number, by one forward of the network itself."""
    with torch.no_grad():
        logp = network(torch.tensor([before + ids]), use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logp[len(before) + i - 1, token]) for i, token in enumerate(ids)) / len(ids)


def test_every_passage_is_a_part_of_its_page(model: Model, store: str) -> None:
    for question in (QUESTION, "Question: What makes files smaller?", "Tell me about containers"):
        for size in (7, 40):
            answer = model.generate(question, method=RecallLocation(documents=store, passage=size), max_tokens=60)
            assert answer.candidates
            assert answer.trace[0]["score"] == max(place["score"] for place in answer.trace)
            for place, candidate in zip(answer.trace, answer.candidates, strict=True):
                page = PAGES[place["title"]]
                assert candidate.text
                assert candidate.text in page
                assert candidate.text == place["text"] == page[slice(*place["characters"])]
                assert model.lm.decode(candidate.tokens) == candidate.text
                assert len(candidate.tokens) <= size
            assert answer.text == answer.candidates[0].text
            assert answer.finish_reason == "stop"


def test_titles_and_prefixes_have_the_networks_own_scores(model: Model, network: Any, store: str) -> None:
    method = RecallLocation(documents=store, titles=3, title_beams=40, passages=30)
    answer = model.generate(QUESTION, method=method, max_tokens=40)
    (end,) = model.lm.eos_ids
    before = model.encode(QUESTION + str(method.ask_title))
    known = stored(model.lm, store)
    worth = {d.title: max(mean_logp(network, before, [*ids, end]) for ids in d.titles) for d in known}
    best = sorted(worth, key=lambda title: -worth[title])[:3]
    assert {place["title"] for place in answer.trace} <= set(best)
    assert answer.trace[0]["title"] == best[0]
    before = model.encode(QUESTION + str(method.ask_passage))
    for place in answer.trace[:6]:
        (document,) = (d for d in known if d.title == place["title"])
        prefix = document.ids[place["tokens"][0] :][: method.prefix]
        assert place["title_score"] == pytest.approx(worth[place["title"]], abs=1e-3)
        assert place["prefix_score"] == pytest.approx(mean_logp(network, before, list(prefix)), abs=1e-3)
        assert place["score"] == pytest.approx(0.9 * place["title_score"] + 0.1 * place["prefix_score"], abs=1e-6)


def test_lam_weighs_the_title_against_the_prefix(model: Model, store: str) -> None:
    def trace(lam: float) -> list[dict[str, Any]]:
        method = RecallLocation(documents=store, titles=3, lam=lam, passages=30)
        return model.generate(QUESTION, method=method, max_tokens=40).trace

    by_title, by_prefix = trace(1.0), trace(0.0)
    assert [p["score"] for p in by_title] == sorted((p["title_score"] for p in by_title), reverse=True)
    assert [p["score"] for p in by_prefix] == sorted((p["prefix_score"] for p in by_prefix), reverse=True)
    assert by_title[0]["title_score"] > by_prefix[0]["title_score"] or by_title[0]["title"] == by_prefix[0]["title"]


def test_a_reader_answers_behind_the_passage(model: Model, store: str) -> None:
    method = RecallLocation(documents=store, reader="\nPassage: {passage}\nAnswer:")
    answer = model.generate(QUESTION, method=method, max_tokens=12)
    prompt = f"{QUESTION}\nPassage: {answer.trace[0]['text']}\nAnswer:"
    assert answer.text == model.generate(prompt, method="plain", max_tokens=12).text
    chosen = model.generate(QUESTION, method=method, choices=["git log", "ls"], max_tokens=12)
    assert chosen.text in ("git log", "ls")
    assert chosen.trace[0]["text"] == answer.trace[0]["text"]


def test_a_title_may_end_with_a_text_of_its_own(model: Model, network: Any, store: str) -> None:
    method = RecallLocation(documents=store, titles=1, title_beams=40, title_end="\n")
    answer = model.generate(QUESTION, method=method, max_tokens=40)
    before = model.encode(QUESTION + str(method.ask_title))
    ends = model.lm.encode("\n", special=False)
    worth = {
        d.title: max(mean_logp(network, before, [*ids, *ends]) for ids in d.titles) for d in stored(model.lm, store)
    }
    assert answer.trace[0]["title_score"] == pytest.approx(max(worth.values()), abs=1e-3)
    assert {place["title"] for place in answer.trace} == {max(worth, key=lambda title: worth[title])}


def test_without_any_end_a_title_that_begins_another_is_refused() -> None:
    world = toy_world(3)
    store = tuple(Document("", "", (title,), (0, 1, 2)) for title in ((0, 1), (0, 1, 1)))
    method = RecallLocation(store, ask_title=[], ask_passage=[])
    with pytest.raises(ValueError, match="begins with another title, and toy-3-2-0 has no token that ends a text"):
        decode(world.lm, method, [[0]], Settings(max_tokens=8))
    (answer,) = decode(world.lm, replace(method, title_end=[2]), [[0]], Settings(max_tokens=8))
    assert answer.tokens


def test_log_probabilities_are_those_of_the_passage(model: Model, network: Any, store: str) -> None:
    method = RecallLocation(documents=store, passage=10)
    answer = model.generate(QUESTION, method=method, max_tokens=10, logprobs=0)
    assert answer.candidates
    assert answer.logprobs
    before = model.encode(QUESTION + str(method.ask_passage))
    total = mean_logp(network, before, answer.tokens) * len(answer.tokens)
    assert answer.candidates[0].logp == pytest.approx(total, abs=1e-3)
    assert sum(t.logprob for t in answer.logprobs) == pytest.approx(total, abs=1e-3)


def test_what_cannot_be_done_is_said(model: Model, store: str, tmp_path: Path) -> None:
    def ask(method: RecallLocation, **settings: Any) -> None:
        model.generate(QUESTION, method=method, **{"max_tokens": 20, **settings})

    with pytest.raises(ValueError, match="has no documents: give documents=FILE"):
        ask(RecallLocation())
    with pytest.raises(ValueError, match=r"nowhere.jsonl' cannot be read: No such file"):
        ask(RecallLocation(documents="nowhere.jsonl"))
    with pytest.raises(ConstraintError, match="cannot be kept by a passage"):
        ask(RecallLocation(documents=store), choices=["a"])
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"title": "A title of many words", "text": "Short."}))
    with pytest.raises(ConstraintError, match="the titles cannot be satisfied within max_tokens=2: its shortest text"):
        ask(RecallLocation(documents=str(long)), max_tokens=2)
    with pytest.raises(ValueError, match="tokens more than the context of mini"):
        model.generate("word " * (model.lm.context_length - 30), method=RecallLocation(documents=store), max_tokens=20)
    wrong = tmp_path / "wrong.jsonl"
    good = b'{"title": "a", "text": "b"}\n'
    for line, match in (
        (b"\xff", "line 2 is not UTF-8: byte 0xff"),
        (b'{"title": ', "line 2 is not JSON: Expecting value at character 10"),
        (b'["a", "b"]', 'line 2 is not an object: give {"title": ..., "text": ...}'),
        (b'{"title": "a"}', 'line 2: "text" is missing'),
        (b'{"title": " ", "text": "b"}', 'line 2: "title" is " ", where a text is needed'),
        (b'{"title": "a", "text": 5}', 'line 2: "text" is 5'),
        (b'{"title": "a", "text": "b<|endoftext|>"}', "line 2: it has token 0, which ends a text"),
    ):
        wrong.write_bytes(good + line)
        with pytest.raises(ValueError, match=match.replace("|", r"\|").replace("{", r"\{")):
            ask(RecallLocation(documents=str(wrong)))
    wrong.write_bytes(b"\n\n")
    with pytest.raises(ValueError, match="has no document: give"):
        ask(RecallLocation(documents=str(wrong)))


def test_settings_are_checked_and_come_from_text() -> None:
    for bad in ({"titles": 0}, {"titles": 16}, {"lam": 1.5}, {"reader": "Answer:"}, {"prefix": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))}="):
            RecallLocation(**bad)
    assert catalog.build("recall_location", documents="f", lam="0.5", titles="1") == RecallLocation("f", 1, lam=0.5)


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("_places", "(1 - self.lam)", "self.lam"),
        ("_places", "(), sources, 1, count)", "(), sources, 1, count - 1)"),
        ("_places", "document.find(", "(lambda run: 0)("),  # a passage from the beginning, wherever its prefix stands
        ("_titles", "[: self.titles]", "[-self.titles :]"),
        ("_titles", "self.ask_title", "self.ask_passage"),
        ("_recall", "running=[root])", "running=[root], length_penalty=0.0)"),
    ],
)
def test_a_wrong_rule_breaks_the_law(monkeypatch: pytest.MonkeyPatch, function: str, old: str, new: str) -> None:
    world = toy_world(3)
    hold(RecallLocation(), world)
    mutate(monkeypatch, RecallLocation, function, old, new)
    with pytest.raises(LawBroken):
        hold(RecallLocation(), world)
