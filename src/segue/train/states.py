"""Texts with a model's states behind every token, kept on disk for the drafters that learn from them.

The texts are windows of a corpus as they are, or what the model itself writes behind the windows' beginnings. A folder
holds shards, each written whole or not at all, so that collecting goes on where it was cut short.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from segue.data import DraftTree, Settings, Want
from segue.models.engine import Engine
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Run

SHARD = 64  # texts, and fewer where there are few
PARTS = 20  # of which the last is held out
FACTS = "facts.json"


@dataclass(frozen=True)
class Gathering:
    """How texts are gathered; lengths in tokens."""

    reads: tuple[int, ...]  # states, as numbered by Want.hidden
    own: bool = True  # the model's own text, not the corpus' behind the beginning
    prompt: int = 32  # of a window's beginning
    length: int = 128  # of what follows
    temperature: float = 1.0
    top_k: int = 10
    seed: int = 0


def windows(lm: LM, texts: Sequence[Sequence[int]], how: Gathering, most: int) -> list[list[int]]:
    """The token windows of a corpus, taken evenly from all of it where there are more than `most`. Of an
    encoder-decoder every text is a source. The last of a text may be short, if more than a beginning is left."""
    if lm.start_ids:
        found = [list(text[: lm.longest_prompt(0)]) for text in texts if text]
    else:
        size = how.prompt + how.length
        found = [list(text[i : i + size]) for text in texts for i in range(0, len(text) - how.prompt, size)]
    if len(found) < PARTS:
        raise ValueError(
            f"{len(found)} windows of up to {how.prompt} + {how.length} tokens are too few: at least {PARTS}; "
            "give more or longer texts, or lower --set prompt=... or length=..."
        )
    return [found[i * len(found) // most] for i in range(most)] if len(found) > most else found


def gather(
    lm: LM,
    texts: Sequence[Sequence[int]],
    how: Gathering,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Read or write all windows into shards of `folder`, of which complete ones are kept; the folder. ValueError where
    it holds other texts or another model's states."""
    digest = hashlib.sha256(json.dumps([list(text) for text in texts]).encode()).hexdigest()[:16]
    facts = {"model": lm.identity or lm.name, "texts": digest, **json.loads(json.dumps(asdict(how)))}
    folder.mkdir(parents=True, exist_ok=True)
    sheet = folder / FACTS
    if sheet.is_file() and json.loads(sheet.read_text()) != facts:
        raise ValueError(
            f"{folder} holds states of another model, other texts or other settings: name another --out or --states"
        )
    if not sheet.is_file():
        _replace(sheet, lambda path: path.write_text(json.dumps(facts, indent=1) + "\n"))
    size = max(1, min(SHARD, len(texts) // PARTS))
    for start in range(0, len(texts), size):
        path = folder / f"{start // size:06d}.safetensors"
        if not path.is_file():
            group = _shard(lm, texts[start : start + size], how, start)
            _replace(path, lambda staging, group=group: save_file(group, staging))  # type: ignore[misc]
        progress(min(start + size, len(texts)), len(texts))
    return folder


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    staging = path.with_name(path.name + ".new")
    write(staging)
    os.replace(staging, path)


def _shard(lm: LM, texts: Sequence[Sequence[int]], how: Gathering, first: int) -> dict[str, Tensor]:
    """ids (N,), own (N,), lengths (texts,), and of every state the rows (N, D)."""
    engine, jobs = Engine(), []
    found: list[dict[str, Tensor]] = [{} for _ in texts]
    for number, text in enumerate(texts):
        own = how.own or bool(lm.start_ids)
        settings = Settings(
            max_tokens=how.length, temperature=how.temperature, top_k=how.top_k, seed=how.seed + first + number
        )
        run = Run(lm, list(text if lm.start_ids or not own else text[: how.prompt]), settings)
        jobs.append(engine.add(run, _keep(run, own, how, found[number])))
    engine.drain(jobs)
    whole = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    return {**whole, "lengths": torch.tensor([len(one["ids"]) for one in found])}


def _keep(run: Run, own: bool, how: Gathering, found: dict[str, Tensor]) -> Decoder[None]:
    """Read a text with its states and, where wanted, write on."""
    rows: dict[int, list[Tensor]] = {state: [] for state in how.reads}

    def keep(scores: Any) -> None:
        for state in how.reads:
            rows[state].append(scores.hidden[state].to(torch.bfloat16).cpu())

    scores = yield Forward(
        run.sequence, DraftTree.chain(run.ids), Want(logits="last" if own else "none", hidden=how.reads)
    )
    keep(scores)
    run.sequence.commit(list(range(len(run.ids))))
    if own:
        token = run.pick(scores, -1)
        while run.emit([token], scores, [-1]):
            scores = yield Forward(run.sequence, DraftTree.root(token), Want(hidden=how.reads))
            run.sequence.commit([0])
            keep(scores)
            token = run.pick(scores, -1)
    else:
        run.finish("length")
    ids = torch.tensor(run.ids, dtype=torch.int32)
    guessed = torch.ones(len(ids), dtype=torch.uint8)
    guessed[: run.prompt_length if own else 1] = 0
    found |= {"ids": ids, "own": guessed}
    for state in how.reads:
        states = torch.cat(rows[state])
        missing = len(ids) - len(states)  # nobody read the last token
        found[f"state {state}"] = torch.cat([states, states.new_zeros(missing, states.shape[1])])


class States:
    """The shards of a folder, as lessons. `place` says how far they were read."""

    def __init__(self, folder: Path, reads: tuple[int, ...], texts: int, seed: int) -> None:
        """Lessons of so many texts."""
        shards = sorted(folder.glob("*.safetensors"))
        held = max(1, len(shards) // PARTS)
        self.train, self.held = shards[:-held], shards[-held:]
        self.reads, self.texts, self.seed = reads, texts, seed
        self.place = {"epoch": 0, "shard": 0, "text": 0}
        self._open: tuple[Path, dict[str, Tensor]] | None = None

    def next(self) -> Lesson:
        """The next lesson of the training part, in an order that depends on the seed alone."""
        place = self.place
        order = self._order(place["epoch"], len(self.train), 0)
        path = self.train[order[place["shard"]]]
        shard = self._shard(path)
        count = len(shard["lengths"])
        chosen = self._order(place["epoch"], count, 1 + order[place["shard"]])[place["text"] :][: self.texts]
        place["text"] += self.texts
        if place["text"] >= count:
            place["shard"], place["text"] = place["shard"] + 1, 0
        if place["shard"] >= len(self.train):
            place["epoch"], place["shard"] = place["epoch"] + 1, 0
        return self._lesson(shard, chosen)

    @property
    def held_texts(self) -> int:
        """How many texts, the last ones, are never trained on."""
        return sum(len(self._shard(path)["lengths"]) for path in self.held)

    def heldout(self) -> list[Lesson]:
        """All lessons of the part that is never trained on."""
        lessons = []
        for path in self.held:
            shard = self._shard(path)
            numbers = list(range(len(shard["lengths"])))
            lessons += [self._lesson(shard, numbers[i : i + self.texts]) for i in range(0, len(numbers), self.texts)]
        return lessons

    def _order(self, epoch: int, count: int, stream: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch + 7_919 * stream)
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order

    def _shard(self, path: Path) -> dict[str, Tensor]:
        if self._open is None or self._open[0] != path:
            self._open = path, load_file(path)
        return self._open[1]

    def _lesson(self, shard: dict[str, Tensor], chosen: list[int]) -> Lesson:
        lengths = shard["lengths"].tolist()
        starts = [sum(lengths[:i]) for i in chosen]
        longest = max(lengths[i] for i in chosen)

        def padded(name: str) -> Tensor:
            rows = shard[name]
            out = rows.new_zeros(len(chosen), longest, *rows.shape[1:])
            for place, (number, start) in enumerate(zip(chosen, starts, strict=True)):
                out[place, : lengths[number]] = rows[start : start + lengths[number]]
            return out

        states = {state: padded(f"state {state}") for state in self.reads}
        return Lesson(padded("ids").long(), padded("own").bool(), states)
