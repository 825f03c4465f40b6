"""Instructive decoding: what the model would write on a distorted instruction counts against every token.

1. Replace the instruction of the prompt by a distorted one; the input of the task stays: the opposite of what is asked
   (the best in the paper), none, its words thinned out and shuffled, or random words.
2. Read both prompts; from then on both are followed by the same output, in one forward per token.
3. The scores of the next token are z - eps * z', of the right and of the distorted prompt.
4. The request's settings act on these scores as they would on logits; take the arg-max, or draw.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segue.card import Card, Claim, Limit, Paper, SameTarget
from segue.choose.sample.base import Sampling
from segue.models.run import Run
from segue.ops.distort import KINDS, OPPOSITE, distorted, instruction_of, replaced


@dataclass(frozen=True)
class Instructive(Sampling):
    """The model against itself, wrongly instructed: no second model, but a second stream."""

    card = Card(
        paper=Paper(
            id="2311.00233",
            title="Distort, Distract, Decode: Instruction-Tuned Model Can Refine its Response from Noisy Instructions",
            year=2023,
        ),
        claim=Claim(value=None, unit="none", baseline="greedy", setting="SuperNI and MMLU: 'opposite' gains the most"),
        exact=(SameTarget(target="instructive"), Limit(knob="eps", exact_at=0.0, begin=0.8)),
        needs=("logits", "an instruction"),
        departs="random words are words of the vocabulary, not of a dictionary",
        check="spec",
    )

    eps: float = 0.3  # share of the distorted scores that is subtracted; 0 is ordinary decoding
    kind: str = "opposite"  # opposite, null, truncate_shuffle or random_words
    instruction: Any = ""  # its text; "": what stands before the first blank line; a number: so many tokens
    noisy: Any = ""  # the distorted instruction itself (text, or ids where the prompt is ids), not a kind
    share: float = 0.6  # of the words that truncate_shuffle leaves out
    words: int = 5  # that random_words takes
    seed: int = 0  # of the distortion

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps={self.eps} is not allowed: from 0 (ordinary decoding) to below 1")
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not allowed: one of {', '.join(KINDS)}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} is not allowed: from 0 (all words stay) to 1 (only the first does)")
        if self.words < 1:
            raise ValueError(f"words={self.words} is not allowed: at least 1")
        number = isinstance(self.instruction, int) and not isinstance(self.instruction, bool)
        if not isinstance(self.instruction, str) and not (number and self.instruction > 0):
            raise ValueError(
                f"instruction={self.instruction!r} is not allowed: text of the prompt, or how many of its tokens"
            )

    @property
    def sequences(self) -> int:
        """Both prompts are followed by an answer."""
        return 2

    def streams(self, run: Run) -> list[list[int]]:
        prompt = run.prompt
        return [self.distort(run, prompt)]

    def mix(self, rows: list[Tensor]) -> Tensor:
        right, noisy = rows
        # Rows of padding are minus infinity in both, and stay so.
        noisy = noisy.masked_fill(torch.isneginf(noisy), 0.0)
        return right - self.eps * noisy

    def distort(self, run: Run, prompt: list[int]) -> list[int]:
        """The prompt with the distorted instruction."""
        if isinstance(self.instruction, int):
            return self._distort_ids(run, prompt)
        if run.lm.tokenizer is None:
            raise ValueError(
                f"instruction={self.instruction!r} is text, and {run.lm.name} has no tokenizer: say how many tokens of "
                "the prompt are its instruction"
            )
        # Special tokens are part of a prompt, and encoding adds those in front again where the text has none.
        text = str(run.lm.tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        other = self.noisy if isinstance(self.noisy, str) else run.lm.decode(self.noisy)
        if not other and self.kind == "opposite":
            other = OPPOSITE
        elif not other:
            words = instruction_of(text, self.instruction).split()
            other = " ".join(self._distorted(words, _vocabulary(run) if self.kind == "random_words" else []))
        new = replaced(text, self.instruction, other)
        return run.lm.encode(new, special=run.lm.encode(text) == prompt)

    def _distort_ids(self, run: Run, prompt: list[int]) -> list[int]:
        if self.instruction > len(prompt):
            raise ValueError(
                f"instruction={self.instruction} is not allowed: the prompt has {len(prompt)} tokens; name fewer"
            )
        front, rest = prompt[: self.instruction], prompt[self.instruction :]
        if self.noisy:
            other = run.lm.encode(self.noisy, special=False) if isinstance(self.noisy, str) else list(self.noisy)
        elif self.kind == "opposite":
            other = run.lm.encode(OPPOSITE, special=False)
        else:
            other = self._distorted(front, range(run.lm.vocab_size))
        if not other and not rest:
            raise ValueError(
                f"kind={self.kind!r} is not allowed here: it leaves nothing of a prompt that is instruction"
            )
        return [*other, *rest]

    def _distorted(self, words: Any, pool: Any) -> list[Any]:
        return distorted(words, self.kind, share=self.share, count=self.words, pool=pool, seed=self.seed)


def _vocabulary(run: Run) -> list[str]:
    """Words that are single tokens, in a fixed order."""
    decoded = (
        run.lm.decode([t]).strip()
        for t in random.Random(0).sample(range(run.lm.vocab_size), min(run.lm.vocab_size, 4000))
    )
    return [word for word in decoded if len(word) > 2 and word.isalpha()] or ["word"]
