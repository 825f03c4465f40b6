"""Orderings that papers claim, at equal node budgets: python studies/tree_ordering/run.py [PART ...]

Parts: recursive, dynamic, dense, fused (all of them by default, about 12 minutes of one core). Writes results.json
beside this file, of which a part replaces its own. What was counted is kept in a folder under the system's temporary
one, so that a run that was cut short goes on; it is forgotten when the package's source changes, or with --fresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import segue
from segue.api import Model
from segue.bench.ordering import Arm, Claim, Counts, count, markdown, ordering, spelled
from segue.bench.suites import suite
from segue.cli import main as command
from segue.cli.report import progress
from segue.data import Settings
from segue.decode.speculative.base import Outcome
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.dresd import Dresd
from segue.decode.speculative.dyspec import Dyspec
from segue.decode.speculative.multi_candidate import MultiCandidate
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.rasd import Rasd
from segue.decode.speculative.recursive import Recursive
from segue.decode.speculative.rest import Rest
from segue.models.draft import Draft
from segue.models.run import Run

HERE = Path(__file__).parent
WORK = Path(tempfile.gettempdir()) / "segue-tree-ordering"
RESULTS, JOURNAL = HERE / "results.json", WORK / "journal.jsonl"
PARAPHRASES = HERE.parents[1] / "tests" / "data" / "paraphrases.jsonl"
TOKENS, NODES, GRAM = 64, 12, 5
DRAWN = (0.6, 1.0)
TEMPERATURES = (0.0, *DRAWN)
COPYING = ("summarisation", "retrieval")  # kinds of the suite whose prompts hold what the answers are about

Table = dict[str, list[dict[str, Any]]]


class Study:
    """The model, what was counted already, and the results so far."""

    def __init__(self) -> None:
        self.lm: Model = segue.model(dtype="float32")
        self.spec = suite("spec")
        files = sorted(Path(segue.__file__).parent.rglob("*.py"))
        self.source = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        (WORK / self.source[:12]).mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = {}
        for line in JOURNAL.read_text().splitlines() if JOURNAL.exists() else []:
            with contextlib.suppress(ValueError):  # a line that was cut short
                self.known.update([json.loads(line)])

    def prompts(self, step: int = 1, kinds: Sequence[str] = ()) -> list[list[int]]:
        """Every so manieth prompt of the suite's, or of some kinds of it."""
        pairs = zip(self.spec.prompts, self.spec.kinds, strict=True)
        chosen = [prompt for prompt, kind in pairs if not kinds or kind in kinds]
        return [self.lm.encode(prompt) for prompt in chosen[::step]]

    def table(
        self, title: str, prompts: list[list[int]], arms: list[Arm], claims: list[tuple[str, str]], **rest: Any
    ) -> Table:
        """The comparison of some arms, also printed."""
        rest = {"reach": 0, "seeds": 1, "temperatures": TEMPERATURES} | rest

        def known(arm: Arm, temperature: float, make: Callable[[], Counts]) -> Counts:
            asked = [self.source, spelled(arm.method), temperature, TOKENS, rest["reach"], rest["seeds"], prompts]
            key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
            if key not in self.known:
                self.known[key] = make().as_dict()
                with JOURNAL.open("a") as journal:
                    journal.write(json.dumps([key, self.known[key]]) + "\n")
            return Counts.from_dict(self.known[key])

        settings = Settings(max_tokens=TOKENS)
        with progress() as show:
            found = ordering(
                self.lm.lm,
                prompts,
                arms,
                [Claim(*claim) for claim in claims],
                settings=settings,
                known=known,
                progress=lambda _, done, total: show(title, done, total),
                **rest,
            )
        print(f"\n### {title}\n\n{markdown(found)}")
        return found


def recursive(study: Study) -> dict[str, Any]:
    """Siblings without replacement, and whole sequences without, against siblings with replacement."""
    arms, claims = [], []
    for shape in ("4,1,1", "3,3"):
        arms += [
            Arm(f"with replacement {shape}", MultiCandidate(candidates=shape, replacement=True)),
            Arm(f"without replacement {shape}", MultiCandidate(candidates=shape)),
            Arm(f"RSD-C {shape}", Recursive(branches=shape)),
        ]
        claims += [(f"RSD-C {shape}", f"{how} replacement {shape}") for how in ("with", "without")]
    arms += [Arm("RSD-S 4x3", Recursive(mode="beam", width=4, depth=3)), Arm("chain 12", DraftModel(gamma=NODES))]
    claims += [("RSD-S 4x3", arm.name) for arm in arms if arm.name != "RSD-S 4x3"]
    claims += [(f"RSD-C {shape}", "chain 12") for shape in ("4,1,1", "3,3")]
    table = study.table("recursive", study.prompts(2), arms, claims, temperatures=DRAWN, reach=20, seeds=2)
    return {f"{NODES} nodes": table}


def dynamic(study: Study) -> dict[str, Any]:
    """Trees that follow the draft's confidence against trees of one shape and as many nodes."""
    tables: dict[str, Any] = {}
    evaluated, others = study.prompts(3), study.prompts()[1::12]  # without a prompt in common
    for temperature in TEMPERATURES:
        theta = fitted(study, temperature, others)
        fixed = [
            *(Arm(f"fixed {shape}", MultiCandidate(candidates=shape)) for shape in ("4,1,1", "2,1,1,1,1,1")),
            Arm("beam 4x3", Recursive(mode="beam", width=4, depth=3)),
            Arm("chain 12", DraftModel(gamma=NODES)),
        ]
        moving = [
            Arm("dyspec heap", Dyspec(nodes=NODES)),
            Arm("dyspec layer-wise", Dyspec(nodes=NODES, layerwise=True)),
            Arm("dyspec layer-wise, theta fitted", Dyspec(nodes=8 * NODES, layerwise=True, theta=theta)),
        ]
        claims = [(ours.name, theirs.name) for ours in moving for theirs in fixed]
        tables[f"temperature {temperature:g}"] = study.table(
            f"dynamic, temperature {temperature:g}",
            evaluated,
            moving + fixed,
            claims,
            temperatures=(temperature,),
            reach=24,
        )
    tables["confidence"] = confidence(study, evaluated)
    return tables


def fitted(study: Study, temperature: float, prompts: list[list[int]]) -> float:
    """The threshold with which trees have so many nodes in the mean, found on prompts that are not evaluated."""
    low, high = 0.0, 1.0
    settings = Settings(max_tokens=TOKENS, temperature=temperature)
    for _ in range(8):
        theta = (low + high) / 2
        method = Dyspec(nodes=8 * NODES, layerwise=True, theta=theta)
        mean = count(study.lm.lm, method, prompts, settings, reach=24).mean()["nodes"]
        low, high = (low, theta) if mean < NODES else (theta, high)
    return round((low + high) / 2, 4)


@dataclass(frozen=True)
class Watched(Dyspec):
    """Notes what the draft gave the first token of every draft, and whether it was accepted."""

    seen: list[tuple[float, bool]] = field(default_factory=list)

    def observe(self, run: Run, state: Draft, outcome: Outcome) -> None:
        super().observe(run, state, outcome)
        tree = outcome.tree
        if len(tree) > 1:
            given = float(tree.q[0][tree.tokens[1]]) if tree.sampled[1] else tree.score[1]
            self.seen.append((given, 1 in outcome.path))


def confidence(study: Study, prompts: list[list[int]]) -> list[dict[str, float]]:
    """What the draft gives its first token, in the mean, and how often the target accepts that token."""
    found = []
    for temperature in TEMPERATURES:
        method = Watched(nodes=1)
        count(study.lm.lm, method, prompts, Settings(max_tokens=TOKENS, temperature=temperature))
        given, kept = (sum(part) / len(method.seen) for part in zip(*method.seen, strict=True))
        found.append({"temperature": temperature, "draft_gives": given, "accepted": kept})
    print("\n", json.dumps(found))
    return found


def stores(study: Study) -> tuple[dict[str, str], dict[str, list[list[int]]], dict[str, Any]]:
    """Datastores of the model's answers to 40 questions, the same questions and their paraphrases as prompts, and how
    much of the answers is in the stores word for word."""
    rows = [json.loads(line) for line in PARAPHRASES.read_text().splitlines()]
    made = {}
    for kind in ("suffix", "dense"):
        made[kind] = str(WORK / study.source[:12] / kind)
        if Path(made[kind]).exists():
            continue
        argv = ["index", "build", str(PARAPHRASES), "-o", made[kind], "--kind", kind, "--respond", str(TOKENS)]
        with contextlib.redirect_stdout(io.StringIO()):
            code = command([*argv, "--dtype", "float32"])
        if code:
            raise SystemExit(code)
    prompts = {
        "paraphrases": [study.lm.encode(row["paraphrase"]) for row in rows],
        "verbatim": [study.lm.encode(row["prompt"]) for row in rows],
    }
    answers = {name: study.lm.generate(some, "plain", max_tokens=TOKENS) for name, some in prompts.items()}
    stored = {gram for answer in answers["verbatim"] for gram in grams(answer.tokens)}
    facts: dict[str, Any] = {"documents": len(rows), "gram": GRAM}
    for name, some in answers.items():
        found = [gram in stored for answer in some for gram in grams(answer.tokens)]
        facts[f"{name}: share of grams that the stored answers have"] = sum(found) / len(found)
    facts["paraphrases: answers equal to the stored one"] = sum(
        a.tokens == b.tokens for a, b in zip(answers["paraphrases"], answers["verbatim"], strict=True)
    )
    return made, prompts, facts


def grams(tokens: list[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]


def dense(study: Study) -> dict[str, Any]:
    """Retrieval by likeness of hidden states against retrieval by equal text."""
    made, prompts, facts = stores(study)
    tables: dict[str, Any] = {"stores": facts}
    print(json.dumps(facts, indent=1))
    arms = [Arm(f"dresd {nodes}", Dresd(index=made["dense"], nodes=nodes)) for nodes in (8, 16)]
    arms += [Arm(f"rest {nodes}", Rest(index=made["suffix"], nodes=nodes)) for nodes in (8, 16, 24)]
    claims = [("dresd 8", "rest 8"), ("dresd 16", "rest 16"), ("dresd 8", "rest 16"), ("dresd 16", "rest 24")]
    for name, some in prompts.items():
        tables[name] = study.table(f"dense over sparse, {name}", some, arms, claims, reach=10)
    return tables


def fused(study: Study) -> dict[str, Any]:
    """A draft model's tree and what retrieval found in one tree, against either with the whole budget."""
    made, prompts, _ = stores(study)
    tables: dict[str, Any] = {}
    cases: dict[str, tuple[list[list[int]], Callable[[int], Any]]] = {
        "all prompts, prompt_lookup": (study.prompts(3), lambda nodes: PromptLookup(draft_tokens=nodes)),
        "prompts with the text, prompt_lookup": (
            study.prompts(2, COPYING),
            lambda nodes: PromptLookup(draft_tokens=nodes),
        ),
        "paraphrases, rest": (prompts["paraphrases"], lambda nodes: Rest(index=made["suffix"], nodes=nodes)),
    }
    for title, (some, retrieval) in cases.items():
        arms = [Arm("model 12", Dyspec(nodes=12)), Arm("retrieval 12", retrieval(12))]
        for own, more in ((6, 6), (8, 8)):
            method = Rasd(model=Dyspec(nodes=own), retrieval=retrieval(more), retrieved=more)
            arms.append(Arm(f"fused {own}+{more}", method))
        arms.append(Arm("model 9", Dyspec(nodes=9)))
        claims = [(f"fused {n}", o) for n in ("6+6", "8+8") for o in ("model 12", "retrieval 12")]
        claims.append(("fused 6+6", "model 9"))
        tables[title] = study.table(f"fused, {title}", some, arms, claims, temperatures=(0.0, 0.6), reach=24)
    return tables


PARTS: dict[str, Callable[[Study], Any]] = {f.__name__: f for f in (recursive, dynamic, dense, fused)}


def main() -> None:
    torch.set_num_threads(1)
    asked = [word for word in sys.argv[1:] if word != "--fresh"]
    if unknown := [word for word in asked if word not in PARTS]:
        raise SystemExit(f"no part is called {unknown[0]!r}: there are {', '.join(PARTS)}, and --fresh")
    if "--fresh" in sys.argv:
        shutil.rmtree(WORK, ignore_errors=True)
    study = Study()
    for name in asked or PARTS:
        tables = PARTS[name](study)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        setting = {
            "model": "mini",
            "draft": "mini-draft",
            "tokens": TOKENS,
            "suite": "spec",
            "torch": torch.__version__,
        }
        results |= {"setting": setting, name: tables}
        text = json.dumps({key: results[key] for key in ("setting", *PARTS) if key in results}, indent=1)
        RESULTS.write_text(text.replace(f"{WORK}/", "") + "\n")


if __name__ == "__main__":
    main()
