"""How far an answer is from what it might have been: token by token equal to another one, and likely under a model."""

from __future__ import annotations

from collections.abc import Sequence

from segue.data import Settings
from segue.decode.plain import Plain
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.prompted import scored
from segue.models.run import Run


def nats(lm: LM, texts: Sequence[Sequence[int]], given: Sequence[int]) -> list[float]:
    """Of every text the negative log-probability of its tokens behind the first `given` ones, of which there is at
    least one, under a decoder model; in nats."""
    engine, jobs = Engine(), []
    for text, known in zip(texts, given, strict=True):
        if not 0 < known <= len(text):
            raise ValueError(f"{known} given tokens of a text of {len(text)} is not allowed: at least 1, at most all")
        run = Run(lm, list(text), Settings(max_tokens=1))
        jobs.append(engine.add(run, scored(run, Plain().run(run))))
    engine.drain(jobs)
    found = []
    for job, known in zip(jobs, given, strict=True):
        assert job.run.prompt_logprobs is not None
        found.append(-sum(token.logprob for token in job.run.prompt_logprobs[known:]))
    return found


def likeness(
    lm: LM, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], others: Sequence[Sequence[int]]
) -> dict[str, list[float]]:
    """Counts of every answer for FIGURES of an ablation: "written" tokens, those that are the "same" at their place in
    the other answer, and "nats" of all of them under `lm` behind the prompt."""
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    return {
        "written": [len(answer) for answer in answers],
        "same": [
            sum(one == other for one, other in zip(answer, reference, strict=False))
            for answer, reference in zip(answers, others, strict=True)
        ],
        "nats": [round(value, 3) for value in nats(lm, texts, [len(prompt) for prompt in prompts])],
    }
