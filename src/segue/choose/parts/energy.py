"""Energies of texts: metrics, and the weights mu by which a model's texts are to be as human ones are on average.

sr2, sr3, sr4       share of n-grams that were there before (sequence repetition)
tr8, tr16, tr32     share of tokens that were among the last so many (token repetition)
diversity           product of the shares of distinct 2-, 3- and 4-grams
information         minus the mean log-probability of the tokens under the model
coherence           cosine of the sentence vectors of prompt and text
module:function     anybody's own, of a prompt and a list of texts
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.choose.parts.hypothesis import prompt_words
from segue.choose.parts.rerank import Drafter, Drawn, draw
from segue.choose.parts.utility import Embedding, imported
from segue.data import DraftTree, Settings, Want
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Run
from segue.models.source import EMBEDDED
from segue.ops.moments import tilt

METRICS = ("sr2", "sr3", "sr4", "tr8", "tr16", "tr32", "diversity", "information", "coherence")


def check(metrics: Sequence[str]) -> None:
    """ValueError with the nearest name where a metric is not known."""
    for name in metrics:
        if name not in METRICS and ":" not in name:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"{', '.join(METRICS)}, or module:function"
            raise ValueError(f"metrics={name!r} is not known: {hint}")
    if not metrics:
        raise ValueError(f"no metrics: give at least one of {', '.join(METRICS)}")


def repeated(tokens: Sequence[int], n: int) -> float:
    """SR-n: the share of n-grams that are repetitions."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def recent(tokens: Sequence[int], window: int) -> float:
    """TR-l: the share of tokens that are among the `window` before them."""
    return sum(t in tokens[max(0, i - window) : i] for i, t in enumerate(tokens)) / len(tokens)


def measure(run: Run, drawn: Sequence[Drawn], metrics: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n, K) metrics of answers to a run's prompt."""
    columns: list[list[float]] = []
    for name in metrics:
        if name[:2] in ("sr", "tr") and name in METRICS:
            count = repeated if name.startswith("sr") else recent
            columns.append([count(d.tokens, int(name[2:])) for d in drawn])
        elif name == "diversity":
            columns.append([math.prod(1 - repeated(d.tokens, n) for n in (2, 3, 4)) for d in drawn])
        elif name == "information":
            columns.append([-d.logp / len(d.tokens) for d in drawn])
        else:
            run.stats.scorer_calls += len(drawn)
            prompt, texts = prompt_words(run), [d.words for d in drawn]
            if name == "coherence":
                columns.append(Embedding().matrix(texts, [prompt])[:, 0].tolist())
            else:
                columns.append([float(value) for value in imported(name)(prompt, texts)])
    return np.array(columns, dtype=np.float64).T


@dataclass(frozen=True)
class Energy:
    """E(x) = mu . (f(x) - mean) / std, with mean and std of the human texts."""

    metrics: tuple[str, ...]
    mu: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: dict[str, Any] = field(default_factory=dict, compare=False)  # of what it was fitted on

    def __post_init__(self) -> None:
        check(self.metrics)
        for name in ("mu", "mean", "std"):
            numbers = getattr(self, name)
            if len(numbers) != len(self.metrics) or not all(math.isfinite(x) for x in numbers):
                raise ValueError(f"{name}={numbers!r} is not allowed: a finite number for each of {self.metrics}")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std!r} is not allowed: numbers above 0")

    def of(self, run: Run, drawn: Sequence[Drawn]) -> list[float]:
        """Of every answer; the larger the unlikelier."""
        standard = (measure(run, drawn, self.metrics) - np.array(self.mean)) / np.array(self.std)
        return [float(e) for e in standard @ np.array(self.mu)]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load(path: str, lm: LM) -> Energy:
    """An energy from its file, or, without one, the one that comes with an embedded model."""
    place = Path(path).expanduser() if path else EMBEDDED / lm.name / "daemon.json"
    if not place.is_file():
        what = f"energy={path!r}: there is no such file" if path else f"{lm.name} comes with no energy"
        raise ValueError(f"{what}: fit one with `segue daemon fit TEXTS -o FILE` and name it with energy=FILE")
    try:
        data = json.loads(place.read_text())
        lists = {name: tuple(data[name]) for name in ("metrics", "mu", "mean", "std")}
        return Energy(**lists, facts=dict(data.get("facts", {})))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"energy={str(place)!r} is no energy: {error!r}; fit one with `segue daemon fit`") from None


def fit(
    lm: LM,
    texts: Sequence[Sequence[int]],
    inner: Drafter,
    *,
    metrics: Sequence[str] = ("sr2", "sr3", "sr4", "tr8", "tr16", "tr32", "diversity", "information"),
    prefix: int = 32,
    length: int = 64,
    samples: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    ridge: float = 1e-3,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Energy:
    """mu such that the model's continuations of the texts' beginnings have the human metrics on average.

    The texts (token ids) are cut into windows of `prefix` and `length` tokens; `inner` (plain sampling) draws `samples`
    continuations of each prefix at `temperature`, at which the energy is then to be used. Metrics that are the same in
    all human windows cannot be scaled and are left out.
    """
    check(metrics)
    size = prefix + length
    windows = [list(text[i : i + size]) for text in texts for i in range(0, len(text) - size + 1, size)]
    if len(windows) < 2 or min(prefix, length, samples) < 1:
        raise ValueError(
            f"{len(windows)} windows of {prefix} + {length} tokens in {len(texts)} texts: at least 2 are needed; give "
            "more or longer texts, or lower prefix or length"
        )
    engine, found = Engine(), []
    for i, window in enumerate(windows):
        settings = Settings(max_tokens=length, temperature=temperature, ignore_eos=True, seed=seed + i)
        run = Run(lm, window[:prefix], settings)
        run.width = samples + 1
        result: list[tuple[Any, Any]] = []
        engine.add(run, _both(run, window[prefix:], inner, samples, metrics, result))
        found.append(result)
    total = len(windows)
    while not engine.idle:
        engine.step()
        progress(sum(bool(result) for result in found), total)
    human = np.concatenate([result[0][0] for result in found])
    drawn = np.concatenate([result[0][1] for result in found])
    prompts = np.repeat(np.arange(total), [len(result[0][1]) for result in found])  # each is tilted for itself
    varied = [k for k in range(len(metrics)) if human[:, k].std() > 0]
    names = tuple(metrics[k] for k in varied)
    if not names:
        raise ValueError(f"all human windows have the same {', '.join(metrics)}: give longer or more texts")
    mean, std = human[:, varied].mean(0), human[:, varied].std(0)
    mu, mass = tilt((drawn[:, varied] - mean) / std, np.zeros(len(varied)), groups=prompts, ridge=ridge)
    facts = {
        "model": lm.name,
        "windows": total,
        "prefix": prefix,
        "length": length,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "ridge": ridge,
        "human": _named(names, mean),
        "model_mean": _named(names, drawn[:, varied].mean(0)),
        "tilted_mean": _named(names, mass @ drawn[:, varied]),
        "effective_samples": round(float(1 / (mass**2).sum() / total), 2),  # of each window
    }
    weights, centre, spread = (tuple(float(x) for x in part) for part in (mu, mean, std))
    return Energy(names, weights, centre, spread, facts)


def _named(names: Sequence[str], values: Any) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}


def _both(
    run: Run, human: list[int], inner: Drafter, samples: int, metrics: Sequence[str], result: list[tuple[Any, Any]]
) -> Decoder[None]:
    """The metrics of the human continuation and of the model's own, one row each."""
    drawn = yield from draw(run, inner, samples, duplicates="tokens")
    sequence = run.sequence.fork()
    assert run.first is not None
    scores = yield Forward(sequence, DraftTree.chain(human), Want())
    rows = [run.first.row(-1), *scores.logits[: len(human) - 1]]
    logp = sum(float(torch.log_softmax(row.float(), -1)[token]) for row, token in zip(rows, human, strict=True))
    sequence.release()
    text = run.lm.decode(human) if run.lm.tokenizer is not None else " ".join(map(str, human))
    truth = Drawn(human, text, text, logp, "length")
    values = measure(run, drawn, metrics)
    result.append((measure(run, [truth], metrics), np.repeat(values, [d.count for d in drawn], axis=0)))
    run.finish("length")
