"""Quality estimates: what an answer is worth without any reference, as features of a ranking.

`logp`, `mean_logp` and `length` are of the model that wrote it. `reverse` is the mean log-probability of the prompt
given the answer (`reverse:PATH` by another model, such as one that translates back). `embedding` is the cosine of the
sentence vectors of prompt and answer, `judge` a language model's grade. `regex:PATTERN`, `classifier:PATH`,
`module:function` and objects with `score(prompt, texts)` are rewards (choose/parts/scorer.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence as Seq
from typing import Any, cast

import numpy as np
import torch

from segue.choose.parts.hypothesis import prompt_words
from segue.choose.parts.judge import ALONE, Judge
from segue.choose.parts.rerank import Drawn
from segue.choose.parts.scorer import named, scored
from segue.choose.parts.utility import Embedding
from segue.data import DraftTree, Want
from segue.models.companion import beside
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Prefill, Run, gather

NAMES = ("logp", "mean_logp", "length", "reverse", "embedding", "judge")
BRIDGE = "\n"  # between an answer and the prompt that shall follow it
OWN = ("logp", "mean_logp", "length")  # cost nothing


def check(feature: Any) -> None:
    """ValueError with the nearest name where a feature is not known."""
    if isinstance(feature, str):
        kind, _, rest = feature.partition(":")
        if feature in NAMES or (rest and kind != "judge"):
            return
        near = difflib.get_close_matches(feature, NAMES, n=1, cutoff=0.4)
        kinds = ", ".join((*NAMES, "reverse:PATH", "regex:PATTERN", "classifier:PATH"))
        hint = f"did you mean {near[0]}?" if near else f"{kinds} or module:function"
        raise ValueError(f"features={feature!r} is not known: {hint}")
    if not isinstance(feature, Judge) and not hasattr(feature, "score"):
        raise ValueError(
            f"features={feature!r} is not allowed: a name, a Judge, or an object with score(prompt, texts)"
        )


def estimate(run: Run, drawn: Seq[Drawn], feature: Any) -> Decoder[list[float]]:
    """A number for every answer; more is better."""
    if feature in OWN:
        place = OWN.index(feature)
        return [(d.logp, d.logp / len(d.tokens), float(len(d.tokens)))[place] for d in drawn]
    if feature == "judge" or isinstance(feature, Judge):
        judge = Judge(task=ALONE, reference="") if feature == "judge" else feature
        grades = yield from judge.scored(run, drawn, drawn[:1], np.ones((len(drawn), 1)))
        return [float(g) for g in grades[:, 0]]
    run.stats.scorer_calls += len(drawn)
    if isinstance(feature, str) and feature.partition(":")[0] == "reverse":
        lm = beside(run.lm, feature.partition(":")[2] or None)
        return (yield from reverse(run, lm, drawn))
    prompt, texts = prompt_words(run), [d.words for d in drawn]
    if feature == "embedding":
        return cast("list[float]", Embedding().matrix(texts, [prompt])[:, 0].tolist())
    return scored(named(feature, "features"), prompt, texts, feature)


def reverse(run: Run, lm: LM, drawn: Seq[Drawn]) -> Decoder[list[float]]:
    """Mean log-probability of the prompt's tokens after each answer, all answers side by side."""
    prompt = run.prompt
    wordless = lm.tokenizer is None
    asked = list(prompt) if wordless else lm.encode(run.lm.decode(prompt), special=False)
    before = [list(d.tokens) if wordless else lm.encode(d.text + BRIDGE) for d in drawn]
    longest = max(map(len, before)) if not lm.start_ids else len(lm.start_ids)
    if not asked or longest + len(asked) > lm.context_length:
        raise ValueError(
            f"features='reverse': {lm.name} has a context of {lm.context_length}, and would have to read an answer of "
            f"{longest} tokens and the prompt's {len(asked)}: shorten them or name another model with reverse:PATH"
        )
    sequences = [lm.reading(ids) if lm.start_ids else lm.sequence() for ids in before]
    starts = [
        Prefill(s, list(lm.start_ids) or ids, Want(logits="last")) for s, ids in zip(sequences, before, strict=True)
    ]
    first = [scores.row(-1)[None] for scores in (yield from gather(list(starts)))]
    if len(asked) > 1:
        rest = [Forward(s, DraftTree.chain(asked[:-1]), Want()) for s in sequences]
        later = [scores.logits for scores in (yield from gather(list(rest)))]
        first = [torch.cat([a, b]) for a, b in zip(first, later, strict=True)]
    found = []
    for sequence, rows in zip(sequences, first, strict=True):
        logp = rows.double().log_softmax(-1)
        found.append(float(logp[torch.arange(len(asked)), torch.tensor(asked, device=logp.device)].mean()))
        sequence.release()
    return found
