"""A whole measurement: who takes part, what is run, and what is written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file

import segue
from segue import catalog
from segue.api import Model
from segue.bench.contest import Contestant, Ours, contest
from segue.bench.elsewhere import ENGINES, Elsewhere, Place, check, elsewhere_peers
from segue.bench.figures import summary
from segue.bench.peers import margins, transformers_peers
from segue.bench.suites import Suite
from segue.data import Settings
from segue.models.cost import processor
from segue.models.source import EMBEDDED, place
from segue.models.variant import Variant, parse

PEERS = ("transformers", "llama.cpp", *ENGINES)
HEADS = (
    "",
    "tokens/s",
    "speed",
    "over plain",
    "not looping",
    "tokens/forward",
    "forwards",
    "acceptance",
    "draft/verify/other ms",
    "memory +MB",
    "equal",
    "margin",
)


@dataclass(frozen=True)
class Entrant:
    """A method as named by the user, with the object, and the variant of the model where another one runs it."""

    name: str
    method: Any
    variant: Variant | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be measured, checked before a model is loaded."""

    suite: Suite
    methods: tuple[Entrant, ...]
    source: str
    draft: str | None
    settings: Settings
    rounds: int
    peers: dict[str, Place | None]  # with the place of those that live elsewhere
    command: str


def parse_methods(text: str | None, draft: str | None, source: str) -> tuple[Entrant, ...]:
    """Methods from names with fields, e.g. "plain,token_recycling:nodes=16:budget=gain" or "auto,auto:deny=rest+aded",
    each on another variant of the model where one follows an @ (auto@int8, plain@llama.cpp/q8_0); all lossless ones
    that `source` allows where None. A draft model is handed to those that take one and name none."""
    has_draft = draft is not None or source == "mini"
    able = [n for n, e in catalog.entries().items() if e.able(has_draft) and e.same_tokens]
    names = text.split(",") if text else able
    methods = []
    for name in names:
        whole, *pairs = name.strip().split(":")
        base, _, variant = whole.partition("@")
        entry = catalog.find(base)
        wrong = next((pair for pair in pairs if "=" not in pair), None)
        if wrong is not None:
            raise ValueError(f"{name!r}: {wrong!r} is not FIELD=VALUE, e.g. {base}:budget=gain")
        values: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
        if draft is not None and "draft" in {f.name for f in entry.fields}:
            values.setdefault("draft", draft)
        methods.append(Entrant(name.strip(), catalog.build(base, **values), parse(variant) if variant else None))
    return tuple(methods)


def check_peers(text: str) -> dict[str, Place | None]:
    """Peers from NAME, NAME=PYTHON or NAME:KIND:KIND=PYTHON; transformers always takes part, as the baseline."""
    names: dict[str, tuple[list[str], str]] = {}
    for part in filter(str.strip, text.split(",")):
        whole, _, python = part.strip().partition("=")
        name, *kinds = whole.split(":")
        names[name] = kinds, python
    wrong = next((name for name in names if name not in PEERS), None)
    if wrong is not None:
        raise ValueError(f"--peers {wrong!r} is unknown: choose from {', '.join(PEERS)}")
    inside = next((name for name, more in names.items() if any(more) and name not in ENGINES), None)
    if inside is not None:
        raise ValueError(f"--peers {inside} runs in our own Python, in all its kinds: say no more than its name")
    missing = [m for m in ("llama_cpp", "gguf") if "llama.cpp" in names and importlib.util.find_spec(m) is None]
    if missing:
        raise ValueError(f"the peer llama.cpp needs {' and '.join(missing)}: pip install 'segue[llamacpp]'")
    return {name: check(name, *more) if name in ENGINES else None for name, more in names.items()}


def measure(
    plan: Plan, model: Model, *, journal: Path | None = None, progress: Callable[[int, int], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the contest; gives a record for each contestant (the baseline first) and the setting."""
    if model.lm.backend != "transformers":
        raise ValueError(
            f"the contest is against transformers, which does not run {model.lm.name}: name the checkpoint with -m, "
            "and its GGUF form in the methods, e.g. auto@llama.cpp/q8_0"
        )
    room = model.lm.longest_prompt(plan.settings.max_tokens)
    ids = [model.lm.encode(prompt) for prompt in plan.suite.prompts]
    prompts = [prompt[-room:] for prompt in ids]
    setting = _setting(plan, model, sum(len(prompt) > room for prompt in ids))
    dtype, device = model.lm.dtype, model.lm.device
    peers = transformers_peers(plan.source, dtype, device, plan.draft)
    contestants: list[Contestant] = [*peers, *_ours(plan, model)]
    if "llama.cpp" in plan.peers:
        from segue.bench.llamacpp import llamacpp_peers

        draft = peers[-1].options.get("assistant_model")
        context = max(map(len, prompts)) + plan.settings.max_tokens
        contestants += llamacpp_peers(peers[0].network, draft, model.lm, context)
    settings = plan.settings
    with ExitStack() as stack:
        afar: list[Elsewhere] = []
        for name, where in plan.peers.items():
            if where is not None:
                what = _folder(plan.source), model.lm.eos_ids, torch.get_num_threads()
                afar += stack.enter_context(elsewhere_peers(name, where, *what))
        setting["elsewhere"] = {peer.name: peer.versions for peer in afar}
        contestants += afar
        rows = contest(
            contestants, prompts, settings, rounds=plan.rounds, journal=journal, setting=setting, progress=progress
        )
    gaps = {} if settings.temperature else margins(peers[0].network, prompts, rows)
    return list(summary(rows, plan.suite.kinds, gaps)), setting


def _ours(plan: Plan, model: Model) -> list[Ours]:
    """Our contestants; a variant is loaded once, however many methods run on it."""
    loaded: dict[Variant | None, Model] = {None: model}
    for entrant in plan.methods:
        if entrant.variant not in loaded:
            loaded[entrant.variant] = segue.model(plan.source, **entrant.variant.options())  # type: ignore[union-attr]
    return [Ours(entrant.name, loaded[entrant.variant], entrant.method) for entrant in plan.methods]


def table(records: list[dict[str, Any]]) -> list[list[str]]:
    """Heads, then a row of cells for each contestant."""
    lines = [list(HEADS)]
    for r in records:
        parts = r.get("milliseconds_per_token")
        gap = f"{r['margin_median']:.3f} to {r['margin_largest']:.3f}" if r["margin_median"] is not None else "-"
        lines.append(
            [
                r["name"],
                f"{r['tokens_per_second']:.0f}",
                "{:.2f} [{:.2f}, {:.2f}]".format(*r["ratio"]),
                "{:.2f} [{:.2f}, {:.2f}]".format(*r["ratio_to_plain"]) if r["ratio_to_plain"] else "-",
                f"{r['ratio_not_looping'][0]:.2f}" if r["ratio_not_looping"] else "-",
                f"{r['tokens_per_forward']:.2f}" if parts else "-",
                f"{r['target_forwards']}+{r['draft_forwards']}" if parts else "-",
                f"{r['acceptance']:.2f}" if r.get("acceptance") is not None else "-",
                f"{parts['drafting']:.2f}/{parts['verifying']:.2f}/{parts['other']:.2f}" if parts else "-",
                f"{r['memory_growth_bytes'] / 1e6:.0f}",
                f"{r['equal']} of {r['prompts']}",
                gap,
            ]
        )
    return lines


def write_results(records: list[dict[str, Any]], setting: dict[str, Any]) -> list[Path]:
    """Keep the measured result of every method with default fields under results/, where the docs read it."""
    written = []
    for record in records:
        if record["name"] in catalog.entries():
            entry = catalog.find(record["name"])
            fields = {f.name: f.default for f in entry.fields}
            data = {**record, "setting": setting, "source_hash": entry.source_hash(), "rev": entry.card.rev}
            path = catalog.RESULTS / entry.family / f"{entry.name}.json"
            write_json(path, data | {"fields": fields})
            written.append(path)
    return written


def write_json(path: Path, data: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".tmp")
    staging.write_text(json.dumps(data, indent=1, default=str) + "\n")
    staging.replace(path)


def _folder(source: str) -> Path:
    """Where the files of a model lie: those of a hub id have been fetched by now."""
    found = place(source)[1]
    config = found if Path(found).is_dir() else Path(cached_file(found, "config.json")).parent
    return Path(config).absolute()


def _setting(plan: Plan, model: Model, cut: int) -> dict[str, Any]:
    """Everything needed to read a figure, and to know whether a journal is of the same contest."""
    return {
        "suite": plan.suite.name,
        "says": plan.suite.says,
        "prompts": hashlib.sha256("\0".join(plan.suite.prompts).encode()).hexdigest()[:16],
        "prompts_cut": cut,  # to the end that fits the context
        "contestants": [entrant.name for entrant in plan.methods],
        **surroundings(plan.source, model),
        "draft": plan.draft,
        "max_tokens": plan.settings.max_tokens,
        "temperature": plan.settings.temperature,
        "rounds": plan.rounds,
        "command": plan.command,
    }


def surroundings(source: str, model: Model) -> dict[str, Any]:
    """What a figure depends on besides what is measured: the machine, the model and the versions."""
    weights = EMBEDDED / source / "model.safetensors"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "threads": torch.get_num_threads(),
        "dtype": model.lm.precision,
        "versions": {"segue": segue.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "model": source,
        "model_hash": hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights.is_file() else None,
        "commit": commit.stdout.strip() or None,
    }
