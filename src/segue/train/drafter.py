"""Training of a drafter beside a frozen model: on its states, behind its own text or a corpus'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from segue import catalog
from segue.models.heads import KINDS, DraftNetwork, fitted, load, save
from segue.models.heads.context import Attending
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM
from segue.models.transformers.lm import TransformersLM
from segue.train.recipes import Drafter
from segue.train.savings import PROMPTS, savings
from segue.train.states import Gathering, States, gather, windows
from segue.train.task import Pass


class DrafterTask:
    """A `Drafter` recipe at work in the folder `out`."""

    told = ("right",)

    def __init__(
        self,
        recipe: Drafter,
        lm: LM,
        texts: list[list[int]],
        out: Path,
        *,
        states: Path | None = None,
        start: Path | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self.recipe, self.lm = recipe, lm
        if isinstance(lm, TransformersLM):  # its head is used with gradients, which none of its weights needs
            lm.network.requires_grad_(False)
        cls = KINDS[recipe.kind]
        self.model: Any = load(start, cls, lm) if start else cls.fresh(lm, recipe.seed, **dict(recipe.numbers))
        self.model = self.model.float().train().requires_grad_(True)
        if recipe.shortlist:
            self._shorten(recipe.shortlist)
        self.parts: dict[str, States] = {}
        self.prompts: list[list[int]] = []
        per_lesson = max(1, recipe.micro_tokens // (recipe.prompt + recipe.length))
        for name, own in (("texts", False), ("own", True)):
            if (own and recipe.texts_until >= 1) or (not own and recipe.texts_until <= 0):
                continue
            how = Gathering(
                self.model.reads, own, recipe.prompt, recipe.length, recipe.temperature, recipe.top_k, recipe.seed
            )
            found = windows(lm, texts, how, recipe.windows)

            def told(done: int, total: int, name: str = name) -> None:
                progress(f"gathering states of {'its own text' if name == 'own' else 'the texts'}", done, total)

            folder = gather(lm, found, how, (states or out / "states") / name, told)
            self.parts[name] = States(folder, self.model.reads, per_lesson, recipe.seed)
            held = found[-self.parts[name].held_texts :]
            self.prompts = [text if lm.start_ids else text[: recipe.prompt] for text in held[:PROMPTS]]

    def _shorten(self, tokens: int) -> None:
        if not isinstance(self.model, Attending):
            able = ", ".join(name for name, cls in KINDS.items() if issubclass(cls, Attending))
            raise ValueError(
                f"shortlist={tokens} is not for {self.recipe.kind}, which guesses among all tokens: {able}"
            )
        if tokens >= self.lm.vocab_size:
            raise ValueError(f"shortlist={tokens} is not short: {self.lm.name} has {self.lm.vocab_size} tokens")
        self.model.shortlist = tokens

    @property
    def place(self) -> dict[str, int]:
        return {f"{name} {key}": value for name, part in self.parts.items() for key, value in part.place.items()}

    @place.setter
    def place(self, place: dict[str, int]) -> None:
        for name, part in self.parts.items():
            part.place = {key: place[f"{name} {key}"] for key in part.place}

    def passes(self, spent: float) -> Iterator[Pass]:
        recipe = self.recipe
        part = self.parts["texts" if spent < recipe.texts_until else "own"]
        lessons = [part.next() for _ in range(max(1, recipe.batch_tokens // recipe.micro_tokens))]
        counts = [int(lesson.own.sum()) for lesson in lessons]
        for lesson, count in zip(lessons, counts, strict=True):
            loss = self.model.learn(self.lm, lesson).loss
            yield Pass(loss, loss.item(), count / sum(counts), count)

    @torch.no_grad()
    def evaluate(self, *, quick: bool) -> dict[str, dict[str, float]]:
        """The share of held-out tokens that are guessed right, in percent, by place behind the pending token; not in a
        hurry also what the drafter saves on held-out prompts, greedily and sampled."""
        part = self.parts.get("own") or self.parts["texts"]
        result = {f"place {n}": {"right": right} for n, right in enumerate(self._right(part.heldout()), 1)}
        if not quick:
            for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                result[name] = self.savings(temperature)
        return result

    def _right(self, lessons: list[Lesson]) -> list[float]:
        hits: list[int] = []
        counts: list[int] = []
        for lesson in lessons:
            marks = self.model.learn(self.lm, lesson)
            hits = [a + b for a, b in zip(hits or [0] * len(marks.hits), marks.hits, strict=True)]
            counts = [a + b for a, b in zip(counts or [0] * len(marks.hits), marks.counts, strict=True)]
        return [round(100 * hit / max(count, 1), 2) for hit, count in zip(hits, counts, strict=True)]

    def savings(self, temperature: float) -> dict[str, float]:
        """What the drafter saves behind held-out prompts."""
        network: DraftNetwork = self.model
        was = network.dtype
        method = catalog.build(self.recipe.kind, heads=fitted(network, self.lm))
        found = savings(self.lm, method, self.prompts, temperature)
        self.model = network.to(was).train().requires_grad_(True)
        return found

    def facts(self) -> Mapping[str, Any]:
        return {
            "kind": self.recipe.kind,
            "base": {"name": self.lm.name, "identity": self.lm.identity},
            "shape": dict(self.recipe.numbers),
            **({"shortlist": self.model.shortlist, "listed": self._listed()} if self.model.shortlist else {}),
            "epochs": {name: part.place["epoch"] for name, part in self.parts.items()},
        }

    def _listed(self) -> float:
        """How many of the held-out tokens to guess are on the shortlist, in percent."""
        lessons = (self.parts.get("own") or self.parts["texts"]).heldout()
        tokens = torch.cat([lesson.ids[lesson.own] for lesson in lessons])
        return round(100 * float((tokens < self.model.shortlist).float().mean()), 2)

    def export(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """The drafter as training stands."""
        save(self.model, self.lm, folder, dict(facts))
