from __future__ import annotations

import pytest

import segue
from segue.api import Model
from segue.models.prefixes import LEAST, Prefixes

METHODS = ["plain", "prompt_lookup", "lookahead", "token_recycling", "jacobi", "beam", "contrastive_search", "dola"]
WANT_MORE = ("contrastive_search", "dola")  # hidden states of the whole prompt


@pytest.fixture(scope="module")
def fresh() -> Model:
    return segue.model("mini-draft", dtype="float32")


def keeping(fresh: Model, budget: int = 10**9) -> tuple[Model, Prefixes]:
    prefixes = Prefixes(budget)
    return Model(fresh.lm, prefixes=prefixes), prefixes


@pytest.mark.parametrize("method", METHODS)
def test_answers_behind_a_kept_beginning_are_the_same(fresh: Model, method: str) -> None:
    model, prefixes = keeping(fresh)
    shared = fresh.encode("The old house on the hill had a red door and seven windows. " * 12)
    ends = [fresh.lm.encode(text, special=False) for text in ("Then a man", " In the night she", "He", "Then a dog")]
    prompts = [shared, *(shared + end for end in ends), shared, shared[: LEAST + 9]]
    for prompt in prompts:
        again = model.generate(prompt, method, max_tokens=20, logprobs=0)
        alone = fresh.generate(prompt, method, max_tokens=20, logprobs=0)
        assert again.tokens == alone.tokens
        assert [d.logprob for d in again.logprobs] == pytest.approx([d.logprob for d in alone.logprobs], abs=1e-3)
    if method in WANT_MORE:
        assert prefixes.hits == 0
    else:
        assert prefixes.hits == 6
        assert prefixes.tokens >= 4 * len(shared) + len(shared) - 1 + LEAST


def test_samples_share_a_kept_beginning(fresh: Model) -> None:
    model, prefixes = keeping(fresh)
    prompt = fresh.encode("A short tale of two birds and a cat on the wall. " * 10)
    settings = {"n": 3, "temperature": 0.9, "seed": 4, "max_tokens": 12}
    alone = fresh.generate(prompt, "plain", **settings)
    for _ in range(2):
        assert [one.tokens for one in model.generate(prompt, "plain", **settings)] == [one.tokens for one in alone]
    assert prefixes.hits == 1
    assert prefixes.tokens == len(prompt) - 1


def test_less_is_read(fresh: Model) -> None:
    model, _ = keeping(fresh)
    prompt = fresh.encode("A short tale of two birds and a cat on the wall. " * 10)
    rows = [model.generate(prompt, "plain", max_tokens=4).stats.rows for _ in range(2)]
    assert rows[0] >= len(prompt)
    assert rows[1] <= 5


def test_the_budget_holds_and_the_latest_stay(fresh: Model) -> None:
    texts = [fresh.encode(f"{word} " * 100)[:100] for word in ("one", "two", "three", "four")]
    model, prefixes = keeping(fresh, 250 * fresh.lm.bytes_per_row)
    for text in texts:
        model.generate(text, "plain", max_tokens=2)
        assert 0 < prefixes.bytes <= prefixes.budget
    model.generate(texts[-1], "plain", max_tokens=2)
    assert prefixes.hits == 1
    model.generate(texts[0], "plain", max_tokens=2)
    assert prefixes.hits == 1
    small, none = keeping(fresh, 10)
    small.generate(texts[0], "plain", max_tokens=2)
    assert none.bytes == 0
