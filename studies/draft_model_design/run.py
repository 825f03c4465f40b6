"""The draft-model design study on the embedded model: python studies/draft_model_design/run.py (a few minutes).

Builds the drafts, judges and measures them through `segue draft-study`, times two drafts of equal parameter count and
different depth against each other, and writes results.json beside this file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from segue.models.build import LlamaShape, fresh_llama
from segue.models.lm import LM
from segue.models.prune import keep_layers
from segue.models.shape import shape_of
from segue.models.transformers.linear import dense_or_packed
from segue.models.transformers.load import wrap

HERE = Path(__file__).parent
LIMIT, TOKENS, ROUNDS, GAMMAS = 8, 48, 3, (1, 2, 4)
SHAPES = {"shallow 2x384": (2, 384), "deep 8x192": (8, 192)}  # depth times width squared is the same
STEPS, TURNS = 40, 9


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="segue-study-") as folder:
        drafts = ["mini-draft"]
        for layers in (1, 2, 3):
            path = Path(folder) / f"pruned-{layers}"
            keep_layers("mini", layers, path)
            drafts.append(str(path))
        together = judge(Path(folder), drafts, "--together", "--measure", "--rounds", ROUNDS, *gammas())
        alone = judge(Path(folder), drafts)
    known = {(d["draft"], p["gamma"]): p["answers_ratio"] for d in alone["drafts"] for p in d["points"]}
    for line in together["measured"]:
        line["predicted_alone"] = known[line["draft"], line["gamma"]]
        line["error_alone"] = line["predicted_alone"] / line["ratio"] - 1
    study = together | {"drafts_alone": alone["drafts"]}
    study["within_15_percent"] = {
        key: f"{sum(abs(m[key]) <= 0.15 for m in study['measured'])} of {len(study['measured'])}"
        for key in ("error", "error_alone")
    }
    study["depth_against_width"] = race({name: fresh(*shape) for name, shape in SHAPES.items()})
    (HERE / "results.json").write_text(json.dumps(study, indent=1) + "\n")
    print(json.dumps(study["depth_against_width"], indent=1))
    print("predicted within 15% of measured:", study["within_15_percent"])


def gammas() -> list[object]:
    return [part for gamma in GAMMAS for part in ("--gamma", gamma)]


def judge(folder: Path, drafts: list[str], *flags: object) -> dict[str, Any]:
    """`segue draft-study` of the drafts, in a process with one thread."""
    file = folder / "study.json"
    command = ["draft-study", "-m", "mini", "--limit", LIMIT, "--max-tokens", TOKENS, "--max-gamma", 6, "--fresh"]
    command += ["--dtype", "float32", "-o", file, *flags, *(part for name in drafts for part in ("--draft", name))]
    code = "import sys, torch; torch.set_num_threads(1); from segue.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, *map(str, command)], check=True)
    found: dict[str, Any] = json.loads(file.read_text().replace(f"{folder}/", ""))
    # As the command is typed; in a process made here the name of the program is another.
    found["setting"]["command"] = "segue " + " ".join(str(part).replace(f"{folder}/", "") for part in command)
    return found


def fresh(layers: int, width: int) -> LM:
    """A random draft for the embedded model's vocabulary. Every matrix of a layer grows with the width."""
    heads = width // 64
    shape = LlamaShape(6144, width, layers, heads, heads, 3 * width)
    network = fresh_llama(shape, torch.Generator().manual_seed(0), end_of_text=0, padding=1).eval()
    return wrap(network, name=f"{layers}x{width}", make=dense_or_packed)


def race(drafts: dict[str, LM]) -> dict[str, Any]:
    """Seconds of a step of each, taking turns: the least, which noise cannot lower, and the median, of all turns."""
    from segue.api import Model

    seconds: dict[str, list[float]] = {name: [] for name in drafts}
    for _ in range(TURNS):
        for name, lm in drafts.items():
            begin = time.perf_counter()
            Model(lm).generate([5, 6, 7, 8], "plain", max_tokens=STEPS, ignore_eos=True)
            seconds[name].append((time.perf_counter() - begin) / STEPS)
    found: dict[str, Any] = {}
    for name, lm in drafts.items():
        shape = shape_of(lm)
        assert shape is not None
        least, middle = min(seconds[name][1:]), median(seconds[name][1:])
        found[name] = {**vars(shape), "least_ms": round(1000 * least, 3), "median_ms": round(1000 * middle, 3)}
    return found


if __name__ == "__main__":
    main()
