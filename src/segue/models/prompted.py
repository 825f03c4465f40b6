"""What a model says of a prompt's own tokens, before it goes on from them."""

from __future__ import annotations

from segue.data import DraftTree, TokenLogprob, Want
from segue.models.run import Decoder, Forward, Run

CHUNK = 128  # tokens scored at a time: each needs a row of logits over the whole vocabulary


def scored(run: Run, decoder: Decoder[None]) -> Decoder[None]:
    """Score the prompt first, then decode as `decoder` does. The prompt is read apart, so that no method has to know of
    it. ValueError for an encoder-decoder, whose prompt is not among the tokens that it writes."""
    if run.source:
        raise ValueError(f"{run.lm.name} does not write its prompt: there are no log-probabilities of its tokens")
    sequence = run.lm.sequence()
    prompt = run.prompt
    run.prompt_logprobs = [TokenLogprob(prompt[0], float("nan"), [])]  # nothing stands before it
    try:
        for start in range(0, len(prompt) - 1, CHUNK):
            chunk = prompt[start : start + CHUNK]
            scores = yield Forward(sequence, DraftTree.chain(chunk), Want(logits="all"))
            sequence.commit(list(range(len(chunk))))
            for place, token in enumerate(prompt[start + 1 : start + 1 + len(chunk)]):
                run.prompt_logprobs.append(run.detail(token, scores.row(place)))
    finally:
        sequence.release()
    yield from decoder
