"""Recall of a location: the model itself finds the passage, by remembering where something like it is written.

1. Behind the prompt and the words of `ask_title` a beam search writes titles; a trie lets only those of the store come.
   A title is worth its log-probability divided by its length, its end included.
2. The documents of the best titles are recalled. A suffix automaton of these alone knows what follows any run of their
   tokens.
3. Behind the prompt and the words of `ask_passage` a beam search writes a prefix of some tokens, which that automaton
   holds to what is written there. It is worth its log-probability divided by its length.
4. Its first place in each of the documents is looked up; the passage is what stands from there on.
5. Passages are ranked by lam times the worth of the title and 1 - lam times that of the prefix.
6. The best passage is the answer; or, with `reader`, the model answers behind the prompt and the passage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.beam import Beam, search
from segue.choose.parts.documents import Document, Documents, stored
from segue.choose.parts.hypothesis import Hypothesis, deliver, log_p
from segue.data import Automaton, Candidate, ConstraintError, DraftTree, Want
from segue.models.constraint import Constraint
from segue.models.run import Decoder, Forward, Prefill, Run, gather
from segue.models.warp import Target
from segue.ops.automaton import Substring, Trie

Words = str | Sequence[int]


class Place(NamedTuple):
    """A passage: tokens start..stop-1 of a document."""

    score: float
    title_score: float
    prefix_score: float
    document: Document
    start: int
    stop: int


@dataclass(frozen=True)
class RecallLocation:
    """A passage with its source, word for word, without a retriever."""

    card = Card(
        paper=Paper(
            id="2402.17010",
            title="MindRef: Mimicking Human Memory for Hierarchical Reference Retrieval with Fine-Grained Location "
            "Awareness",
            year=2025,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="retrievers, sparse and dense",
            setting="KILT tasks with LLaMA-2: recalls passages without a retriever, which help the answers",
        ),
        exact=(SameTarget(target="recall_location"),),
        needs=("logits", "documents"),
        departs="a suffix automaton of the recalled documents stands where the paper has an FM-index of them; both "
        "stages share the prompt, which stands before their words. Titles are accepted with a space before them and "
        "without, each in the tokenizer's own spelling, and passages in the document's",
    )

    documents: str | Documents = ""  # JSONL file with "title" and "text" on every line
    titles: int = 2  # that are recalled
    title_beams: int = 15  # hypotheses of the first stage
    beams: int = 10  # hypotheses of the second stage
    prefix: int = 16  # tokens of a passage that the model writes
    passage: int = 150  # tokens of a passage, as far as max_tokens allows
    lam: float = 0.9  # weight of the title's score; the prefix's has the rest
    passages: int = 5  # candidates that are kept, best first
    ask_title: Words = "\n\nThe Wikipedia article corresponding to the above question is:\n\nTitle:"  # before a title
    ask_passage: Words = "\n\nThe Wikipedia paragraph to answer the above question is:\n\nAnswer:"  # before a passage
    title_end: Words = ""  # ends a title, e.g. a newline; empty: the end of text, as in the paper
    reader: str = ""  # written behind the prompt before an answer, e.g. "\nPassage: {passage}\nAnswer:"

    def __post_init__(self) -> None:
        for name in ("titles", "title_beams", "beams", "prefix", "passage", "passages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if self.titles > self.title_beams:
            raise ValueError(f"titles={self.titles} is not allowed: at most title_beams={self.title_beams}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam={self.lam} is not allowed: from 0 (the prefix alone) to 1 (the title alone)")
        if self.reader and "{passage}" not in self.reader:
            raise ValueError(f"reader={self.reader!r} is not allowed: it must say where the {{passage}} goes")

    @property
    def sequences(self) -> int:
        return max(self.title_beams, self.beams, self.passages) + 1

    def run(self, run: Run) -> Decoder[None]:
        store = self._store(run)
        if not run.source:
            yield from run.prefill()
        recalled = yield from self._titles(run, store)
        root = yield from self._behind(run, self.ask_passage, self.passage)
        places = yield from self._places(run, recalled, root)
        texts = [p.document.text[slice(*p.document.characters(p.start, p.stop))] for p in places]
        run.trace += [_shown(place, text) for place, text in zip(places, texts, strict=True)]
        run.stats.note = f"{len(recalled)} of {len(store)} documents recalled"
        if self.reader:
            reading = yield from self._behind(run, self.reader.replace("{passage}", texts[0]), run.max_tokens)
            beam = Beam(run, 1, running=[reading])
            yield from search(run, [beam], lambda: beam.admit(beam.propose()))
            deliver(run, beam.finished)
            return
        passages = yield from self._read(run, root, places)
        candidates = [
            Candidate(text or run.lm.decode(h.tokens), h.tokens, h.logp, h.score)
            for h, text in zip(passages, texts, strict=True)
        ]
        run.conclude(candidates, passages[0].details)
        run.finish_reason = "stop"  # a passage as long as the limit is whole all the same

    def _store(self, run: Run) -> Documents:
        if run.constraint is not None and not self.reader:
            raise ConstraintError(
                f"{run.constraint.name} cannot be kept by a passage, which is given word for word: leave it out, or "
                "let the model answer under it with reader=TEXT"
            )
        if not self.documents:
            raise ValueError('recall_location has no documents: give documents=FILE, JSONL with "title" and "text"')
        return stored(run.lm, self.documents) if isinstance(self.documents, str) else self.documents

    def _titles(self, run: Run, store: Documents) -> Decoder[list[tuple[float, Document]]]:
        """Stage 1: the documents of the best titles, with the titles' scores."""
        mark = tuple(_ids(run, self.title_end))
        ends = frozenset[int]() if mark else run.ends
        by_ids: dict[tuple[int, ...], list[Document]] = {}
        for document in store:
            for ids in document.titles:
                by_ids.setdefault((*ids, *mark), []).append(document)
        clash = next((t for t in by_ids for n in range(1, len(t)) if t[:n] in by_ids), None) if not ends else None
        if clash is not None:
            raise ValueError(
                f"the title {by_ids[clash][0].title!r} begins with another title, and {run.lm.name} has no token that "
                "ends a text: give title_end"
            )
        root = yield from self._behind(run, self.ask_title, run.max_tokens)
        trie = Trie(run.lm.vocab_size, ends, by_ids)
        found = yield from self._recall(run, root, trie, "the titles", self.title_beams, run.max_tokens)
        best: dict[str | tuple[int, ...], list[tuple[float, Document]]] = {}
        for hypothesis in found:
            documents = by_ids[tuple(t for t in hypothesis.tokens if t not in ends)]
            best.setdefault(documents[0].title or documents[0].titles[0], [(hypothesis.score, d) for d in documents])
        return [pair for pairs in list(best.values())[: self.titles] for pair in pairs]

    def _places(self, run: Run, recalled: list[tuple[float, Document]], root: Hypothesis) -> Decoder[list[Place]]:
        """Stage 2: the best passages of the recalled documents."""
        count = min(self.prefix, run.max_tokens)
        sources = [document.ids for _, document in recalled]
        automaton = Substring(run.lm.vocab_size, (), sources, 1, count)
        assert root.sequence is not None
        begin = Hypothesis(sequence=root.sequence.fork(), row=root.row)
        found = yield from self._recall(run, begin, automaton, "the recalled documents", self.beams, count)
        places = []
        for hypothesis in found:
            for title_score, document in recalled:
                start = document.find(tuple(hypothesis.tokens))
                if start is not None:
                    stop = min(start + min(self.passage, run.max_tokens), len(document.ids))
                    score = self.lam * title_score + (1 - self.lam) * hypothesis.score
                    whole = document.whole(start, stop)
                    places.append(Place(score, title_score, hypothesis.score, document, *whole))
        places.sort(key=lambda place: -place.score)
        return places[: self.passages]

    def _recall(
        self, run: Run, root: Hypothesis, automaton: Automaton, name: str, beams: int, tokens: int
    ) -> Decoder[list[Hypothesis]]:
        """The best texts of an automaton behind some words."""
        with _recalling(run, Constraint(automaton, name, run.lm, tokens)):
            beam = Beam(run, beams, running=[root])
            yield from search(run, [beam], lambda: beam.admit(beam.propose()))
        if not beam.finished:
            raise ConstraintError(f"nothing of {name} was recalled: what they have, other settings forbid (bad_words)")
        return beam.finished

    def _behind(self, run: Run, words: Words, tokens: int) -> Decoder[Hypothesis]:
        """The empty text behind the prompt and some words; an encoder reads the words with its source."""
        ids = _ids(run, words)
        before = len(run.source) or run.prompt_length
        room = run.lm.context_length - before - len(ids) - (0 if run.source else min(tokens, run.max_tokens))
        if room < 0:
            raise ValueError(
                f"the prompt, {len(ids)} tokens of words behind it and what is recalled are {-room} tokens more than "
                f"the context of {run.lm.name}: shorten the prompt, passage or max_tokens"
            )
        if run.source:
            last = run.source[-1:] if run.source[-1] in run.lm.eos_ids else []
            source = [*run.source[: len(run.source) - len(last)], *ids, *last]
            sequence, ids = run.lm.reading(source), run.ids[: run.prompt_length]
        else:
            sequence = run.sequence.fork()
        if not ids:
            assert run.first is not None
            return Hypothesis(sequence=sequence, row=run.first.row(-1))
        scores = yield Prefill(sequence, ids, Want(logits="last"))
        return Hypothesis(sequence=sequence, row=scores.row(-1))

    def _read(self, run: Run, root: Hypothesis, places: list[Place]) -> Decoder[list[Hypothesis]]:
        """The passages with the model's log-probabilities of all their tokens, read in one forward."""
        assert root.sequence is not None
        texts = [list(place.document.ids[place.start : place.stop]) for place in places]
        asked = [Forward(root.sequence.fork(), DraftTree.chain(text), Want()) for text in texts]
        found = []
        rows = yield from gather(list(asked))
        with _recalling(run, None):
            for text, place, scores in zip(texts, places, rows, strict=True):
                hypothesis = Hypothesis([], [], place.score, row=root.row)
                for number, token in enumerate(text):
                    logp = float(log_p(run, hypothesis)[token])
                    hypothesis = hypothesis.child(run, token, logp, score=place.score)
                    hypothesis.parent, hypothesis.row = None, scores.row(number)
                found.append(hypothesis)
        for request in asked:
            request.sequence.release()
        return found


def _ids(run: Run, words: Words) -> list[int]:
    if not isinstance(words, str):
        return list(words)
    return run.lm.encode(words, special=False) if words else []


@contextmanager
def _recalling(run: Run, constraint: Constraint | None) -> Iterator[None]:
    """Within the context the run writes what is recalled. What the request asks of its answer, and what the model's own
    configuration forces at the beginning and at the end of one, has no say in that."""
    request = run.constraint, run.target
    settings = replace(run.settings, min_tokens=0)
    run.constraint = constraint
    run.target = Target(settings, run.lm, run.prompt_length, constraint=constraint)
    try:
        yield
    finally:
        run.constraint, run.target = request


def _shown(place: Place, text: str) -> dict[str, Any]:
    """A passage in the trace: where it stands in tokens and characters, and what it is worth."""
    return {
        "title": place.document.title or list(place.document.titles[0]),
        "tokens": [place.start, place.stop],
        "characters": list(place.document.characters(place.start, place.stop)),
        "text": text,
        "title_score": place.title_score,
        "prefix_score": place.prefix_score,
        "score": place.score,
    }
