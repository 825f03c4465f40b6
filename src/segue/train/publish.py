"""From finished runs to what the package ships: the models, their cards, the data licences, the loss curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from segue.models.build import END_OF_TEXT, load_llama
from segue.train.corpus import SOURCES
from segue.train.evaluate import agreement
from segue.train.modelcard import Sample, data_licences, model_card
from segue.train.pairs import heldout_pairs, news_pairs
from segue.train.recipes import Translation, find_recipe
from segue.train.tokenizer import special_id
from segue.train.translation import TranslationTask
from segue.train.translationcard import translation_card

CURVE_POINTS = 200
AGREEMENT_TOKENS = 16_384  # per source
SAMPLES = 2  # per prompt form
SAMPLE_TOKENS = 64
ANSWERS = ("\nAnswer:", "\nEnglish:", "\nGerman:", "\nAssistant:", "\nOutput:")
OPENINGS: Mapping[str, tuple[str, ...]] = {  # a sample's prompt is a held-out document up to the first of these
    "questions": ANSWERS,
    "maths": ANSWERS,
    "translation": ANSWERS,
    "dialogue": ANSWERS,
    "instructions": ANSWERS,
    "programs": ("\n",),
}
TRANSLATED = 8  # samples of each held-out set in a translator's card
PROSE = 160  # characters of a held-out document that open a prose sample


def publish(target: Path, draft: Path, data: Path, embedded: Path, results: Path, seed: int = 0) -> None:
    """Copy the models of the work folders `target` and `draft` to `embedded`, with card and licences.

    The loss curves go to `results`. Samples are drawn at temperature 0.8 from held-out prompts.
    """
    summaries = [json.loads((run / "summary.json").read_text()) for run in (target, draft)]
    names = list(summaries[0]["heldout"])
    for run, summary in zip((target, draft), summaries, strict=True):
        _ship(run, embedded / summary["recipe"], summary, results)
    models = [load_llama(run / "model") for run in (target, draft)]
    tokenizer = Tokenizer.from_file(str(target / "model" / "tokenizer.json"))
    agreed = agreement(models[0], models[1], target / "tokens", names, limit=AGREEMENT_TOKENS)
    generator = torch.Generator().manual_seed(seed)
    samples = [
        Sample(name, prompt, _continue(models[0], tokenizer, prompt, generator))
        for name in names
        for prompt in _prompts(data, name)
    ]
    (embedded / "MODEL_CARD.md").write_text(model_card(summaries, agreed, samples, models))
    (embedded / "LICENSE-DATA.md").write_text(data_licences(names))


def publish_translation(run: Path, data: Path, embedded: Path, results: Path, note: str = "") -> None:
    """Copy the translator of the work folder `run` to `embedded`, its card beside it; the loss curve to `results`.

    `note` is what the card shall say of this run alone.
    """
    summary = json.loads((run / "summary.json").read_text())
    recipe = find_recipe(summary["recipe"])
    if not isinstance(recipe, Translation):
        raise ValueError(f"{run} holds the work of recipe {recipe.name!r}, which is no translator; use publish")
    folder = embedded / recipe.name
    _ship(run, folder, summary, results)
    task = TranslationTask(recipe, data, run)
    task.model = type(task.model).from_pretrained(folder, dtype=torch.float32)
    samples = []
    for name, pairs in (("test", heldout_pairs(data, "test")), ("news", news_pairs(data))):
        chosen = pairs[:TRANSLATED]
        written = task.translate([pair.source for pair in chosen])
        samples += [(name, pair.source, line, pair.target) for pair, line in zip(chosen, written, strict=True)]
    config = json.loads((folder / "config.json").read_text())
    (folder / "README.md").write_text(translation_card(summary, config, samples, note))


def _ship(run: Path, folder: Path, summary: Mapping[str, Any], results: Path) -> None:
    """The model of a run to `folder`, its summary and loss curve to `results`."""
    results.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "model", folder)
    record = {**summary, "curve": loss_curve(run / "log.jsonl")}
    (results / f"{summary['recipe']}.json").write_text(_compact(record))


def loss_curve(log: Path) -> list[dict[str, float]]:
    """The losses of a run, averaged into at most `CURVE_POINTS` points."""
    steps = [record for record in map(json.loads, log.read_text().splitlines()) if "loss" in record]
    width = max(1, -(-len(steps) // CURVE_POINTS))
    points = []
    for start in range(0, len(steps), width):
        part = steps[start : start + width]
        loss = sum(record["loss"] for record in part) / len(part)
        points.append({"tokens": part[-1]["tokens"], "seconds": part[-1]["seconds"], "loss": round(loss, 4)})
    return points


def _compact(record: dict[str, Any]) -> str:
    curve = ",\n".join("  " + json.dumps(point) for point in record.pop("curve"))
    return json.dumps(record, indent=1)[:-2] + f',\n "curve": [\n{curve}\n ]\n}}\n'


def _prompts(data: Path, name: str) -> Iterator[str]:
    for text in islice(SOURCES[name].heldout(data), SAMPLES):
        ends = [text.index(mark) + len(mark) for mark in OPENINGS.get(name, ()) if mark in text]
        opening = text[: min(ends)] if ends else text[:PROSE].rsplit(" ", 1)[0]
        yield opening


@torch.inference_mode()
def _continue(model: Any, tokenizer: Tokenizer, prompt: str, generator: torch.Generator) -> str:
    """Up to `SAMPLE_TOKENS` tokens after `prompt`, drawn at temperature 0.8."""
    end = special_id(tokenizer, END_OF_TEXT)
    ids = [end, *tokenizer.encode(prompt).ids]
    start = len(ids)
    for _ in range(SAMPLE_TOKENS):
        p = (model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] / 0.8).softmax(-1)
        ids.append(int(torch.multinomial(p, 1, generator=generator)))
        if ids[-1] == end:
            break
    text: str = tokenizer.decode(ids[start:])
    return text
