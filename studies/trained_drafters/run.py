"""Ablations of trained drafters on the embedded model: studies/trained_drafters/run.py [--models FOLDER] [ARM ...]

An ARM is NAME=METHOD or NAME=METHOD:FIELD=VALUE,...; --models FOLDER stands for those of TRAINED whose
FOLDER/NAME/model is there. Counted are the arms that are not in results.json yet, with a control for each trained
network; then all pairs are judged, and the tables of README.md are printed from results.json. --fresh forgets what was
counted; --tables counts nothing.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import segue
from segue.bench.ablation import oracle, right, tally
from segue.bench.ablation_page import Results, arms_table, pairs_table, put, table
from segue.bench.figures import looping
from segue.bench.ordering import spelled
from segue.bench.suites import suite
from segue.cli.report import progress
from segue.data import Settings
from segue.models.cost import FLAT
from segue.models.heads import KINDS, DraftNetwork, fitted, trained
from segue.models.lm import LM

HERE = Path(__file__).parent
PROMPTS, TOKENS = 48, 48
GAMMAS = (1, 2, 3, 4, 6, 8)
TRAINED = {
    "jakiro": "jakiro",
    "jakiro1": "jakiro",
    "mlp2": "mlp_speculator",
    "mlp1": "mlp_speculator",
    "eesd": "eesd",
    "chimera": "chimera",
    "chimera_nogram": "chimera",
    "chimera_near": "chimera",
}
PACKAGED = {
    "plain": "plain",
    "prompt_lookup": "prompt_lookup",
    "blockwise": "blockwise_parallel",
    "drafts one path": "blockwise_drafts:by=ngram,paths=1",
    "drafts neural": "blockwise_drafts:by=neural",
    "drafts paths": "blockwise_drafts:by=paths",
    "drafts ngram": "blockwise_drafts:by=ngram",
    "jakiro packaged": "jakiro",
    "jakiro 12 nodes": "jakiro:nodes=12",
    "chimera packaged": "chimera",
}
ORACLE, TOP = "blockwise oracle", 4  # of as many tokens as blockwise_drafts has of every head
SAVED, PLACES = "tokens per forward", ("right 1", "right 2", "right 3")
PAIRS = (
    ("mlp2", "mlp1", SAVED),
    *(("mlp2", "mlp1", place) for place in PLACES),
    *((name, f"{name} without tokens", figure) for name in ("mlp2", "mlp1") for figure in (SAVED, *PLACES)),
    *(("jakiro", "jakiro1", f) for f in (SAVED, "passes per round", "distinct per round", "right 1")),
    ("jakiro", "jakiro before", SAVED),  # what the package had until then
    *(("chimera", f"chimera_{other}", SAVED) for other in ("nogram", "near")),
    *(("chimera", f"chimera_{other}", f"right {place}") for other in ("nogram", "near") for place in (1, 3, 5)),
    ("chimera", "chimera packaged", SAVED),
    *(("drafts one path", "blockwise", figure) for figure in (SAVED, "repeated share")),
    *(("drafts neural", "blockwise", figure) for figure in (SAVED, "repeated share")),
    ("drafts ngram", "drafts paths", SAVED),
    ("drafts paths", "blockwise", SAVED),
    ("drafts ngram", "blockwise", SAVED),
    *((ORACLE, f"drafts {which}", SAVED) for which in ("one path", "neural", "paths", "ngram")),
    *(("eesd", f"eesd gamma {gamma}", "tokens per depth") for gamma in GAMMAS),
)


@dataclass(frozen=True)
class Arm:
    """A method, its network where it has one, and what is known of the network's training."""

    name: str
    method: Any
    network: DraftNetwork | None = None
    training: dict[str, Any] | None = None

    @property
    def spelled(self) -> str:
        """The method without its network, which is in `digest`."""
        return spelled(self.method if self.network is None else replace(self.method, heads=None))

    @property
    def digest(self) -> str:
        """Of the network's weights and shape."""
        if self.network is None:
            return ""
        weights = b"".join(w.float().numpy().tobytes() for w in self.network.state_dict().values())
        return hashlib.sha256(repr(self.network.shape).encode() + weights).hexdigest()


def parsed(text: str, lm: LM) -> Iterator[Arm]:
    """An arm from NAME=METHOD:FIELD=VALUE,... with its controls: the same network untrained, without what its kind's
    ablation takes away, and with drafts of one length where it chooses one."""
    name, _, rest = text.partition("=")
    kind, _, fields = rest.partition(":")
    if not name or not kind:
        raise ValueError(f"{text!r} is not NAME=METHOD:FIELD=VALUE,..., e.g. mine=jakiro:heads=training/jakiro/model")
    values = dict(part.partition("=")[::2] for part in fields.split(",") if part)
    method = segue.method(kind, **values)
    if not hasattr(method, "heads"):
        yield Arm(name, method)
        return
    network = trained(lm, method.network, method.heads)
    network.first = network.further = 1 / lm.layers  # in forwards, as FLAT counts: a layer
    method = replace(method, heads=network)
    yield Arm(name, method, network, training(network, values.get("heads")))
    if name in PACKAGED and name != "blockwise":
        return
    shape = {n: v for n, v in asdict(network.shape).items() if n not in ("width", "vocab_size")}
    fresh = fitted(KINDS[network.kind].fresh(lm, 0, **shape), lm)
    fresh.first, fresh.further = network.first, network.further
    yield Arm(f"{name} untrained", replace(method, heads=fresh), fresh)
    if network.kind == "mlp_speculator":
        without: Any = copy.deepcopy(network)
        for stage in without.embedding:
            stage.weight.zero_()
        yield Arm(f"{name} without tokens", replace(method, heads=without), without)
    if network.kind == "eesd":
        for gamma in GAMMAS:
            yield Arm(f"{name} gamma {gamma}", replace(method, budget="fixed", gamma=gamma), network)


def training(network: DraftNetwork, heads: str | None) -> dict[str, Any]:
    """What a trained network says of its training, and its work folder's summary where there is one."""
    facts: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "steps": network.facts["steps"],
        "tokens": network.facts["tokens"],
        "shape": {n: v for n, v in asdict(network.shape).items() if n not in ("width", "vocab_size")},
    }
    path = Path(heads or "").parent / "summary.json"
    if heads is not None and path.is_file():
        summary = json.loads(path.read_text())
        places = {name: found["right"] for name, found in summary["heldout"].items() if name.startswith("place")}
        facts |= {"minutes": summary["minutes"], "right": list(places.values())}
    return facts


def counted(lm: LM, arm: Arm, prompts: list[list[int]], results: Results) -> None:
    """Count an arm, or take it from the results."""
    key = hashlib.sha256(json.dumps([arm.spelled, arm.digest, prompts, TOKENS]).encode()).hexdigest()[:16]

    def make() -> dict[str, Any]:
        weight = 1 / lm.layers if arm.network is not None and arm.network.kind == "eesd" else 0.0
        with progress() as show:
            found = tally(
                lm,
                arm.method,
                prompts,
                Settings(max_tokens=TOKENS),
                network=arm.network,
                weight=weight,
                # What weighs a forward against its drafts counts it as its own, not as shared.
                together=64 if getattr(arm.method, "budget", "fixed") == "fixed" else 1,
                progress=lambda done, total: show(arm.name, done, total),
            )
        if arm.name == "plain":
            results.data["looping"] = [looping(answer) for answer in found.answers]
        plain = found.answers if arm.name == "plain" else results.arms["plain"]["answers"]
        if arm.network is not None:
            found.counts |= right(lm, arm.network, prompts, plain)
        record: dict[str, Any] = {"method": arm.spelled} | ({"training": arm.training} if arm.training else {})
        record["equal"] = sum(one == other for one, other in zip(found.answers, plain, strict=True))
        record["counts"] = found.counts
        print(arm.name, f"{found.figure(SAVED):.3f}", flush=True)
        return record | ({"answers": found.answers} if arm.name == "plain" else {})

    record = results.arm(arm.name, key, make)
    if arm.training:
        record["training"] = arm.training


def bound(lm: LM, prompts: list[list[int]], results: Results) -> None:
    """Count what the packaged heads would save if the right one of their likeliest tokens were always drafted."""
    heads: Any = trained(lm, KINDS["blockwise_parallel"], None)
    key = f"{results.arms['blockwise']['key']} top {TOP}"

    def make() -> dict[str, Any]:
        found = oracle(lm, heads, prompts, results.arms["plain"]["answers"], TOP)
        return {"method": f"oracle(top={TOP})", "equal": len(prompts), "counts": found.counts}

    results.arm(ORACLE, key, make)


def pairs(results: Results) -> list[tuple[str, str, str]]:
    """PAIRS, and every trained network against its control and what needs no training."""
    found = list(PAIRS)
    for name in results.arms:
        if f"{name} untrained" in results.arms:
            found += [(name, other, SAVED) for other in (f"{name} untrained", "prompt_lookup", "plain")]
    return found


def tables(results: Results) -> str:
    """All that README.md shows."""
    trainings, places = [], []
    for name, arm in results.arms.items():
        if facts := arm.get("training"):
            shape = ", ".join(f"{k}={v}" for k, v in facts["shape"].items())
            minutes = f"{facts['minutes']:.1f}" if "minutes" in facts else "-"
            cost = [f"{facts['parameters'] / 1e6:.2f} M", minutes, f"{facts['tokens']:,}"]
            trainings.append([name, shape, *cost, ", ".join(f"{r:.1f}" for r in facts.get("right", [])) or "-"])
        asked = [count for count in arm["counts"] if count.startswith("right")]
        if asked:
            found = results.tally(name)
            places.append([name, ", ".join(f"{100 * found.figure(count):.1f}" for count in asked)])
    columns = (SAVED, "drafted per round", "passes per round", "distinct per round", "repeated share")
    depth = [[n, f"{results.tally(n).figure('tokens per depth'):.3f}"] for n in results.arms if n.startswith("eesd")]
    parts = {
        "Training": table(["arm", "shape", "parameters", "minutes", "tokens", "right, held out (%)"], trainings),
        "Arms": arms_table(results, columns),
        "Tokens per forward's depth of layers, drafts' layers counted": table(["arm", "tokens"], depth),
        "Right by place behind plain decoding's answers (%)": table(["arm", "place 1, 2, ..."], places),
        "Pairs": pairs_table(results),
    }
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM")
    parser.add_argument("--models", type=Path)
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
        model = segue.model(dtype="bfloat16")
        setting = {"model": "mini", "dtype": "bfloat16", "suite": "spec", "prompts": PROMPTS, "tokens": TOKENS}
        results = Results(path, setting | {"torch": torch.__version__, "weights": model.lm.identity})
        vars(model.lm)["cost"] = FLAT  # no clock: what chooses lengths counts forwards
        prompts = [model.encode(prompt) for prompt in suite("spec", PROMPTS).prompts]
        texts = [f"{name}={method}" for name, method in PACKAGED.items()]
        for name, kind in TRAINED.items() if asked.models else ():
            if (asked.models / name / "summary.json").is_file():  # else it is still being trained
                texts.append(f"{name}={kind}:heads={asked.models / name / 'model'}")
        for text in [*texts, *asked.arms]:
            for arm in parsed(text, model.lm):
                counted(model.lm, arm, prompts, results)
        bound(model.lm, prompts, results)
    results.judge(pairs(results))
    put(HERE / "README.md", tables(results))


if __name__ == "__main__":
    main()
