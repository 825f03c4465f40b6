"""Sketch-guided decoding: a strong model that gives no logits writes a draft, a local one rewrites it to be valid.

1. Ask the black box (an OpenAI-compatible server) for its answer to the prompt: the sketch. It knows of no constraint.
2. The local model reads the prompt and, behind it, the sketch in the words of `revise`.
3. It decodes, greedily or with a beam, what the constraint allows: that of the request, closed lists of entities and
   relations (texts of the form "[s] entity [r] relation [o] entity [e]", any number of them), or constituency trees
   over the words of a sentence.
4. The text ends where it is complete. Where that cannot be done the request fails: nothing is given out unmasked.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib import error, request

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.beam import Beam, search
from segue.choose.parts.hypothesis import Hypothesis, deliver
from segue.data import ConstraintError, Settings, Want
from segue.models.constraint import constraint, spelling
from segue.models.lm import LM
from segue.models.run import Decoder, Prefill, Run
from segue.ops.automaton import Graph

CALLS = 16  # questions to black boxes under way at a time
_pool = ThreadPoolExecutor(CALLS, thread_name_prefix="segue-sketch")
MOST_WORDS = 40  # of a sentence that is parsed
TAGS = {
    "clause": "S SBAR SBARQ SINV SQ FRAG",
    "phrase": "ADJP ADVP CONJP INTJ LST NAC NP NX PP PRN PRT QP RRC UCP VP WHADJP WHADVP WHNP WHPP X",
    "word": "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG "
    "VBN VBP VBZ WDT WP WP$ WRB . , :",
}


@dataclass(frozen=True)
class SketchGuided:
    """The knowledge of a model behind a wall, in a form that can be relied on."""

    card = Card(
        paper=Paper(
            id="2401.09967",
            title="Sketch-Guided Constrained Decoding for Boosting Blackbox Large Language Models without Logit Access",
            year=2024,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="the black box with examples",
            setting="closed information extraction and constituency parsing: better scores, always valid",
        ),
        exact=(SameTarget(target="sketch_guided"),),
        departs="instructions and examples are the caller's, in the prompt; an answer that cannot be completed fails, "
        "where the paper falls back to the unconstrained one; trees have each word once and in order, where the "
        "paper's grammar lets words repeat and nest without an end",
        check="constrained",
    )

    url: str = ""  # of the black box, e.g. https://host/v1; empty needs `sketch`
    model: str = ""  # its name there
    key: str = "OPENAI_API_KEY"  # environment variable that holds the key; one that is not set sends none
    sketch: str | Sequence[int] = ""  # the draft itself, where it is there already; token ids stand behind the prompt
    sketch_tokens: int = 256  # that the black box may write
    timeout: float = 120.0  # seconds it may take
    revise: str = "\nDraft: {sketch}\nRevised:"  # written behind the prompt
    beams: int = 1  # hypotheses of the local model; 1 is greedy
    entities: str = ""  # file with an entity a line: closed information extraction, with `relations`
    relations: str = ""  # file with a relation a line
    sentence: str = ""  # a constituency tree over its words, in their order, is written

    def __post_init__(self) -> None:
        if self.url and self.sketch:
            raise ValueError(f"url={self.url!r} and a sketch: give the black box or its draft, one of them")
        if self.url and not (self.url.startswith(("http://", "https://")) and self.model):
            raise ValueError(f"url={self.url!r}, model={self.model!r}: an http address and a model name are needed")
        if "{sketch}" not in self.revise:
            raise ValueError(f"revise={self.revise!r} is not allowed: it must say where the {{sketch}} goes")
        if self.beams < 1 or self.sketch_tokens < 1 or not self.timeout > 0:
            raise ValueError(
                f"beams={self.beams}, sketch_tokens={self.sketch_tokens}, timeout={self.timeout}: at least 1, 1 and "
                "more than 0 are allowed"
            )
        if bool(self.entities) != bool(self.relations):
            raise ValueError("closed information extraction needs both lists: give entities=FILE and relations=FILE")

    @property
    def sequences(self) -> int:
        return self.beams

    def run(self, run: Run) -> Decoder[None]:
        if not (self.url or self.sketch):
            raise ValueError("sketch_guided has no sketch: give the black box (url=..., model=...) or sketch=TEXT")
        # Asked at once, not when the engine comes to it: a batch of requests waits for the slowest answer only.
        answer = _pool.submit(self._ask, run.lm.decode(run.prompt)) if self.url else None
        return self._decode(run, answer)

    def _decode(self, run: Run, answer: Future[str] | None) -> Decoder[None]:
        self._constrain(run)
        yield from run.prefill()
        sketch = answer.result() if answer is not None else self.sketch
        if isinstance(sketch, str):
            words = run.lm.encode(self.revise.replace("{sketch}", sketch.strip()), special=False)
        else:
            words, sketch = list(sketch), run.lm.decode(sketch)
        room = run.lm.context_length - run.prompt_length - run.max_tokens
        if len(words) > room:
            raise ValueError(
                f"the sketch has {len(words)} tokens, and the context of {run.lm.name} leaves {max(room, 0)} for it: "
                "lower max_tokens or sketch_tokens, or shorten the prompt"
            )
        scores = yield Prefill(run.sequence, words, Want(logits="last"))
        beam = Beam(run, self.beams, running=[Hypothesis(sequence=run.sequence, row=scores.row(-1))])
        yield from search(run, [beam], lambda: beam.admit(beam.propose()))
        deliver(run, beam.finished)
        like = difflib.SequenceMatcher(None, run.lm.decode(run.output).strip(), sketch.strip()).ratio()
        run.trace.append({"sketch": sketch, "similarity": round(like, 4)})
        run.stats.scorer_calls += answer is not None

    def _constrain(self, run: Run) -> None:
        """Set the run's constraint where the method brings its own."""
        if not (self.entities or self.sentence):
            if run.constraint is None:
                raise ConstraintError(
                    "sketch_guided rewrites under a constraint: give json_schema, regex, grammar or choices, or the "
                    "fields entities and relations, or sentence"
                )
            return
        if run.constraint is not None or (self.entities and self.sentence):
            raise ConstraintError("two constraints: give the request's, or entities and relations, or sentence")
        ends = run.lm.eos_ids | set(run.settings.stop_tokens)
        own = Settings(grammar=tree_grammar(self.sentence)) if self.sentence else Settings()
        if self.entities:
            own = replace(own, constraint=triples(run.lm, ends, _lines(self.entities), _lines(self.relations)))
        run.constraint = run.target.constraint = constraint(own, run.lm, run.max_tokens)

    def _ask(self, prompt: str) -> str:
        """The black box's answer."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "max_tokens": self.sketch_tokens}
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {os.environ[self.key]}"
        where = self.url.rstrip("/") + "/chat/completions"
        try:
            with request.urlopen(
                request.Request(where, json.dumps(body).encode(), headers), timeout=self.timeout
            ) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"] or "")
        except error.HTTPError as refused:
            with refused:
                told = refused.read(300).decode(errors="replace")
            raise ValueError(f"{where} refused the request ({refused.code}): {told}") from None
        except (OSError, ValueError, LookupError, TypeError) as trouble:
            raise ValueError(f"{where} gave no sketch: {trouble}; check url and model, or give sketch=TEXT") from None


def triples(lm: LM, ends: set[int] | frozenset[int], entities: list[str], relations: list[str]) -> Graph:
    """Any number of "[s] entity [r] relation [o] entity [e]", each over the closed lists."""
    edges: list[tuple[str, list[int], str]] = []
    for place, mark, goal in (
        ("begin", " [s]", "subject"),
        ("of", " [r]", "relation"),
        ("to", " [o]", "object"),
        ("over", " [e]", "done"),
    ):
        edges.append((place, spelling(mark, lm), goal))
    edges += [("subject", spelling(" " + name, lm), "of") for name in entities]
    edges += [("relation", spelling(" " + name, lm), "to") for name in relations]
    edges += [("object", spelling(" " + name, lm), "over") for name in entities]
    edges.append(("done", [], "begin"))
    return Graph(lm.vocab_size, ends, edges, "begin", ["begin"])


def tree_grammar(sentence: str) -> str:
    """A Lark grammar of bracketed Penn trees over the words of a sentence, each once and in its order. Its texts are
    finite: a phrase with one child stands only above a single word or at the root. Rules grow with the cube of the
    number of words."""
    words = sentence.split()
    if not 0 < len(words) <= MOST_WORDS:
        raise ValueError(f"sentence={sentence!r} is not allowed: 1 to {MOST_WORDS} words, and it has {len(words)}")
    count = len(words)
    inner, tag = (
        " | ".join(json.dumps(t) for kind in kinds for t in TAGS[kind].split())
        for kinds in (("clause", "phrase"), ("word",))
    )
    rules = [f"INNER: {inner}", f"TAG: {tag}"]
    for i, word in enumerate(words):
        rules.append(f'leaf{i}: "(" TAG " " {json.dumps(word)} ")"')
        rules.append(f'item{i}x{i + 1}: leaf{i} | "(" INNER " " leaf{i} ")"')
    for i in range(count):
        for j in range(i + 2, count + 1):
            rules.append(f"many{i}x{j}: " + " | ".join(f'item{i}x{k} " " some{k}x{j}' for k in range(i + 1, j)))
            rules.append(f'item{i}x{j}: "(" INNER " " many{i}x{j} ")"')
        for j in range(i + 1, count + 1):
            rules.append(f"some{i}x{j}: item{i}x{j}" + (f" | many{i}x{j}" if j > i + 1 else ""))
    rules.append(f'start: " "? "(" INNER " " some0x{count} ")"')
    return "\n".join(rules) + "\n"


def _lines(path: str) -> list[str]:
    try:
        found = list(dict.fromkeys(line.strip() for line in Path(path).read_text().splitlines() if line.strip()))
    except (OSError, UnicodeDecodeError) as trouble:
        raise ValueError(f"{path} cannot be read as a list, one entry a line: {trouble}") from None
    if not found:
        raise ValueError(f"{path} is empty: one entry a line is needed")
    return found
