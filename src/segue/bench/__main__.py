"""`python -m segue.bench PROMPTS.jsonl`: the methods against transformers, a table, and JSON under results/."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import segue
from segue import catalog
from segue.bench.compare import PEER, batched, compare, summary
from segue.models.load import EMBEDDED

METHODS = ("plain", "prompt_lookup", "token_recycling", "lookahead", "draft_model")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m segue.bench", description=__doc__)
    parser.add_argument("prompts", type=Path, help="JSONL with a prompt a line")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, with fields as name:field=value:...")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--context", type=int, default=768, help="prompts are cut to this many tokens")
    parser.add_argument("--write", action="store_true", help="write the results of methods without fields")
    options = parser.parse_args()
    console = Console(stderr=True)
    model = segue.model(options.model, dtype=options.dtype)
    lines = [json.loads(line) for line in options.prompts.read_text().splitlines()[: options.limit]]
    prompts = [model.lm.encode(line["prompt"])[: options.context] for line in lines]
    names = options.methods.split(",")
    with console.status("") as status:
        rows = compare(
            model,
            str(EMBEDDED / options.model) if (EMBEDDED / options.model).is_dir() else options.model,
            [_method(name) for name in names],
            names,
            prompts,
            max_tokens=options.max_tokens,
            rounds=options.rounds,
            progress=status.update,
        )
        status.update("32 prompts in one batch against one by one")
        batch = batched(model, prompts[:32], max_tokens=options.max_tokens, rounds=options.rounds)
    records = list(summary(rows))
    _print(records, batch)
    if options.write:
        setting = _setting(model, options)
        for record in records:
            if ":" not in record["name"] and record["name"] != PEER:
                entry = catalog.find(record["name"])
                _write(catalog.RESULTS / entry.family / f"{entry.name}.json", record, setting, entry.source_hash())
        _write(catalog.RESULTS / "batch.json", batch, setting, None)


def _method(text: str) -> Any:
    name, *pairs = text.split(":")
    return segue.method(name, **dict(pair.split("=", 1) for pair in pairs))


def _print(records: list[dict[str, Any]], batch: dict[str, Any]) -> None:
    table = Table("method", "tokens/s", "ratio", "not looping", "tokens/forward", "not looping", "acceptance", "equal")
    for r in records:
        table.add_row(
            r["name"],
            f"{r['tokens_per_second']:.0f}",
            "{:.2f} [{:.2f} to {:.2f}]".format(*r["ratio"]),
            f"{r['ratio_not_looping'][0]:.2f}" if r["ratio_not_looping"] else "-",
            f"{r.get('tokens_per_forward', 1.0):.2f}",
            f"{r['tokens_per_forward_not_looping']:.2f}" if r.get("tokens_per_forward_not_looping") else "-",
            f"{r['acceptance']:.2f}" if r.get("acceptance") is not None else "-",
            f"{r['equal']} of {r['prompts']}",
        )
    console = Console()
    console.width = max(console.width, 120)  # a narrower one would cut the names
    console.print(table)
    console.print("{name}: {ratio} (median, least, most), same tokens: {same_tokens}".format(**batch))


def _setting(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Everything needed to read a figure: machine, versions, model, command."""
    weights = EMBEDDED / options.model / "model.safetensors"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "threads": torch.get_num_threads(),
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "versions": {"segue": segue.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "model": options.model,
        "model_hash": hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights.is_file() else None,
        "max_tokens": options.max_tokens,
        "rounds": options.rounds,
        "command": "python -m segue.bench " + " ".join(sys.argv[1:]),
        "commit": commit.stdout.strip() or None,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _write(path: Path, record: dict[str, Any], setting: dict[str, Any], source_hash: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {**record, "setting": setting}
    if source_hash is not None:
        entry = catalog.find(record["name"])
        data |= {"source_hash": source_hash, "rev": entry.card.rev, "fields": {f.name: f.default for f in entry.fields}}
    staging = path.with_suffix(".tmp")
    staging.write_text(json.dumps(data, indent=1, default=str) + "\n")
    staging.replace(path)


if __name__ == "__main__":
    main()
