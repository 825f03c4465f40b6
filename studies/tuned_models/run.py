"""Models tuned for a method of their own, by forwards and by quality: studies/tuned_models/run.py --models FOLDER

Looked at are those of SWEEPS whose FOLDER/NAME is a finished work folder of `segue train NAME`, and FOLDER/ordinary,
the twin that was only fine-tuned (`segue train space --set share=0`). With --data FOLDER (the data sets of the embedded
models) the perplexity on held-out text is counted as well. What is in results.json is not counted again; --fresh
forgets it; --tables counts nothing and prints the tables of README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segue
from segue.api import Model
from segue.bench.ablation import tally
from segue.bench.ablation_page import Results, arms_table, pairs_table, put, table
from segue.bench.bootstrap import draws, interval, ratios
from segue.bench.figures import looping
from segue.bench.likeness import likeness, nats
from segue.bench.ordering import spelled
from segue.bench.suites import suite
from segue.cli.report import progress
from segue.data import Settings
from segue.train.corpus import SOURCES
from segue.train.recipes import MIXTURE

HERE = Path(__file__).parent
PROMPTS, TOKENS = 48, 48
WINDOW, WINDOWS = 256, 8  # tokens of held-out text, and how many of every source
SAVED, DEPTH, NATS = "tokens per forward", "tokens per depth", "nats per token"
SWEEPS: dict[
    str, tuple[str, tuple[float, ...], str]
] = {  # knob, from strict to loose, and what a looser one gives more of
    "space": ("k", (1, 3, 5), SAVED),
    "lexical_units": ("beta", (1, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0), SAVED),
    "set_block": ("gamma", (0, 0.1, 0.3, 1, 3, 10), SAVED),
    "free": ("threshold", (1, 0.9, 0.7, 0.5, 0.3, 0.1), DEPTH),
}
FURTHER = {"set_block": [{"block": 0}], "free": [{"threshold": 0}, {"exact": True}]}
ORDINARY = "ordinary"


def name_of(kind: str, fields: dict[str, Any]) -> str:
    return f"{kind} " + ", ".join(f"{field}={value:g}" for field, value in fields.items())


def sweep(kind: str) -> list[str]:
    """The names of a sweep's arms, from strict to loose."""
    knob, values, _ = SWEEPS[kind]
    return [name_of(kind, {knob: value}) for value in values]


def arms(kind: str) -> dict[str, Any]:
    """The methods that are run on the model of a kind, by name."""
    if kind not in SWEEPS:
        return {f"{kind} plain": segue.method("plain")}
    knob, values, _ = SWEEPS[kind]
    fields = [*({knob: value} for value in values), *FURTHER.get(kind, [])]
    return {f"{kind} plain": segue.method("plain")} | {name_of(kind, f): segue.method(kind, **f) for f in fields}


def counted(model: Model, kind: str, base: Model, prompts: list[list[int]], results: Results) -> None:
    """Count the arms of a model; the first is plain decoding, which the others are compared with."""
    for name, method in arms(kind).items():
        asked = [model.lm.identity, base.lm.identity, spelled(method), prompts, TOKENS]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

        def make(name: str = name, method: Any = method) -> dict[str, Any]:
            with progress() as show:
                found = tally(
                    model.lm,
                    method,
                    prompts,
                    Settings(max_tokens=TOKENS),
                    progress=lambda done, total: show(name, done, total),
                )
            own = name == f"{kind} plain"
            plain = found.answers if own else results.arms[f"{kind} plain"]["answers"]
            if name == "mini plain":
                results.data["looping"] = [looping(answer) for answer in plain]
            counts = found.counts | likeness(base.lm, prompts, found.answers, plain)
            print(name, f"{found.figure(SAVED):.3f}", flush=True)
            record = {
                "method": spelled(method),
                "equal": sum(a == b for a, b in zip(found.answers, plain, strict=True)),
            }
            return record | {"counts": counts} | ({"answers": found.answers} if own else {})

        results.arm(name, key, make)


def heldout(model: Model, kind: str, data: Path, results: Results) -> None:
    """Count the model's perplexity on held-out text of what the base model was trained on."""
    known = results.data.setdefault("heldout", {})
    if known.get(kind, {}).get("identity") == model.lm.identity:
        return
    texts, sources = [], []
    for source in MIXTURE:
        ids = [model.encode(text) for text in islice(SOURCES[source].heldout(data), 40)]
        windows = [text[i : i + WINDOW] for text in ids for i in range(0, len(text) - WINDOW + 1, WINDOW)]
        texts += windows[:WINDOWS]
        sources += [source] * len(windows[:WINDOWS])
    values = [round(value, 2) for value in nats(model.lm, texts, [1] * len(texts))]
    known[kind] = {"identity": model.lm.identity, "nats": values, "sources": sources}
    results.write()
    print(kind, "perplexity", f"{math.exp(sum(values) / len(values) / (WINDOW - 1)):.3f}", flush=True)


def perplexities(results: Results) -> str:
    """Before and after, with the interval of their ratio, by a paired bootstrap over windows."""
    known, rows = results.data.get("heldout", {}), []
    if "mini" not in known:
        return "not counted"
    before = np.array(known["mini"]["nats"])
    asked = np.full(len(before), WINDOW - 1)
    weights = draws(len(before))
    for kind, found in known.items():
        after = np.array(found["nats"])
        ratio = interval(np.exp(ratios(weights, after - before, asked)))
        cells = [f"{math.exp(after.sum() / asked.sum()):.2f}", f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"]
        facts = results.data.get("trainings", {}).get(kind)
        cost = [f"{facts['minutes']:.1f}", f"{facts['tokens']:,}"] if facts else ["-", "-"]
        own = f"{facts['before']:.2f} to {facts['now']:.2f}" if facts else "-"
        rows.append([kind, *cost, own, *cells])
    head = ["model", "minutes", "tokens", "on its training's held-out texts", "on mini's held-out texts", "of mini's"]
    return table(head, rows)


def sweeps(results: Results) -> str:
    """Whether a looser knob always gives more, and what it costs from one end to the other."""
    rows = []
    for kind, (knob, values, figure) in SWEEPS.items():
        names = [name for name in sweep(kind) if name in results.arms]
        if len(names) < len(values):
            continue
        found = [results.tally(name) for name in names]
        saved, lost = ([one.figure(f) for one in found] for f in (figure, NATS))
        rows.append(
            [
                f"{kind}, {knob} {values[0]:g} to {values[-1]:g}",
                figure,
                ", ".join(f"{value:.2f}" for value in saved),
                "yes" if all(b >= a for a, b in pairwise(saved)) else "no",
                ", ".join(f"{value:.2f}" for value in lost),
                ", ".join(f"{one.figure('equal share'):.2f}" for one in found),
            ]
        )
    return table(["sweep", "figure", "values", "never falls", "nats per token under mini", "equal to plain"], rows)


def pairs(results: Results) -> list[tuple[str, str, str]]:
    """Each arm against plain decoding of the same model, and against the next stricter one."""
    found = []
    for kind, (_, _, figure) in SWEEPS.items():
        names = sweep(kind)
        found += [(name, f"{kind} plain", f) for name in names for f in (figure, NATS)]
        found += [(loose, strict, figure) for strict, loose in pairwise(names)]
        found += [(f"{kind} plain", other, NATS) for other in ("mini plain", f"{ORDINARY} plain")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--tables", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "results.json"
    if asked.fresh:
        path.unlink(missing_ok=True)
    if asked.tables:
        results = Results(path, None)
    else:
        base = segue.model(dtype="float32")
        setting = {"base": "mini", "dtype": "float32", "suite": "spec", "prompts": PROMPTS, "tokens": TOKENS}
        results = Results(path, setting | {"torch": torch.__version__, "weights": base.lm.identity})
        prompts = [base.encode(prompt) for prompt in suite("spec", PROMPTS).prompts]
        models = {"mini": base}
        for kind in [*SWEEPS, ORDINARY] if asked.models else []:
            summary = asked.models / kind / "summary.json"
            if not summary.is_file():  # there is none, or it is still being trained
                continue
            models[kind] = segue.model(str(asked.models / kind / "model"), dtype="float32")
            facts = json.loads(summary.read_text())
            own = {key: facts["heldout"][key]["perplexity"] for key in ("before", "now")}
            results.data.setdefault("trainings", {})[kind] = {n: facts[n] for n in ("minutes", "tokens")} | own
        for kind, model in models.items():
            counted(model, kind, base, prompts, results)
            if asked.data:
                heldout(model, kind, asked.data, results)
    results.judge(pairs(results))
    parts = {
        "Perplexity before and after": perplexities(results),
        "Sweeps, from strict to loose": sweeps(results),
        "Arms": arms_table(results, (SAVED, DEPTH, NATS, "equal share")),
        "Pairs": pairs_table(results),
    }
    put(HERE / "README.md", "\n\n".join(f"### {title}\n\n{text}" for title, text in parts.items()))


if __name__ == "__main__":
    main()
