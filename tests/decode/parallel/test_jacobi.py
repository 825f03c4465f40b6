from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from segue.bench.dependency import Graph, trace
from segue.bench.suites import FOLDER
from segue.data import Settings
from segue.decode.parallel.jacobi import GUESSES, MODES, Iterate, Jacobi
from segue.decode.plain import Plain
from segue.decode.speculative.base import Outcome
from segue.decode.speculative.budget import CONTROLLERS
from segue.laws import suite
from segue.laws.base import decode
from segue.laws.edges import ending_at
from segue.laws.less_work import less_work
from segue.laws.oracle import NetworkOracle
from segue.laws.same_tokens import Compared, compare
from segue.laws.worlds import World, network, network_world, toy_world
from segue.models.lm import LM
from segue.models.run import Run
from segue.models.source import EMBEDDED
from segue.models.transformers.load import load

Listen = Callable[[LM], Any]
FAMILIES = ("llama", "gpt2", "gemma2", "qwen2", "qwen3")
SHAPES = [("hybrid", 3), ("hybrid", 1), ("hybrid", 8), ("gauss_seidel", 3), ("gauss_seidel", 5), ("jacobi", 3)]
TOKENS = 24

the_world = functools.cache(network_world)


@functools.cache
def original(family: str) -> Any:
    """The same network as transformers has it, with its own attention and no cache."""
    net = network(family)
    net.set_attn_implementation("eager")
    return net


@torch.no_grad()
def naive(family: str, text: list[int], guess: list[int]) -> list[list[int]]:
    """Jacobi iteration by the book: y^0 = guess, y^(t+1) the arg-max of one whole forward over text and y^t, until
    what is read no longer changes. Gives y^0, y^1, ... The last token of y^t is never read."""
    seen = [list(guess)]
    while True:
        ids = torch.tensor([text + seen[-1][:-1]])
        rows = original(family)(ids, use_cache=False).logits[0, len(text) - 1 :]
        seen.append(rows.argmax(-1).tolist())
        if seen[-1][:-1] == seen[-2][:-1]:
            return seen


def traced(method: Jacobi, world: World, prompt: list[int], **settings: Any) -> Graph:
    return trace(world.lm, method, prompt, Settings(**{"max_tokens": TOKENS} | settings))


@pytest.mark.parametrize("guess", ["pad", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_iterates_are_those_of_the_book(family: str, guess: str) -> None:
    world = the_world(family)
    for prompt in world.prompts:
        graph = traced(Jacobi(mode="jacobi", guess=guess), world, prompt)
        first = graph.answer.tokens[0]
        expected = naive(family, [*prompt, first], [first if guess == "last" else 0] * (TOKENS - 1))
        assert graph.iterations == len(expected) - 1 <= TOKENS - 1
        for y, theirs in zip(graph.iterates, expected, strict=True):
            assert y.tokens[0] == first
            # The last token of the first guess is never read, so we have none.
            assert [a if b is None else b for a, b in zip(theirs, y.tokens[1:], strict=True)] == theirs


@pytest.mark.parametrize("block", [2, 3, 5])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_are_solved_one_after_the_other(family: str, block: int) -> None:
    world = the_world(family)
    for prompt in world.prompts:
        graph = traced(Jacobi(mode="gauss_seidel", block=block), world, prompt)
        text, iterations = [*prompt, graph.answer.tokens[0]], 0
        while len(text) < len(prompt) + TOKENS:
            size = min(block, len(prompt) + TOKENS - len(text))
            solved = naive(family, text, [0] * size)
            iterations += len(solved) - 1
            text += solved[-1]
        assert graph.answer.tokens == text[len(prompt) :]
        assert graph.iterations == iterations


@dataclass(frozen=True)
class Shifted(Jacobi):
    """Refreshes every guess from the row before its own."""

    def observe(self, run: Run, state: Iterate, outcome: Outcome) -> None:
        super().observe(run, state, outcome)
        at = len(run.ids) - state.first
        state.guess[at:] = [outcome.token, *state.guess[at:-1]] if state.guess[at:] else []


def test_a_wrong_refresh_is_found_though_the_text_is_right() -> None:
    world = the_world("gpt2")
    right, wrong = (traced(cls(mode="jacobi"), world, world.prompts[1]) for cls in (Jacobi, Shifted))
    assert right.answer.tokens == wrong.answer.tokens
    assert right.iterates[1].tokens != wrong.iterates[1].tokens
    assert right.iterations < wrong.iterations


@pytest.mark.parametrize(("mode", "block"), SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mode_writes_what_transformers_writes(family: str, mode: str, block: int) -> None:
    report = suite._same_tokens(Jacobi(mode=mode, block=block, blocks=4), the_world(family))
    assert report.tokens > 200
    assert len(report.near_ties) <= 2


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_samples_the_models_distribution(mode: str, guess: str) -> None:
    """Enumerated; the law also asks that some guesses were kept and some refused."""
    assert suite._same_distribution(Jacobi(mode=mode, block=4, guess=guess), toy_world(3, 2))


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_text_that_plain_decoding_gives(mode: str) -> None:
    world = the_world("gpt2")
    for seed in range(5):
        settings = Settings(max_tokens=TOKENS, temperature=0.6, seed=seed)
        answers = [decode(world.lm, m, world.prompts, settings) for m in (Jacobi(mode=mode, block=6), Plain())]
        assert [a.tokens for a in answers[0]] == [a.tokens for a in answers[1]]


@pytest.mark.parametrize("budget", CONTROLLERS)
def test_a_guess_that_a_controller_cuts_goes_on_where_it_was(budget: str) -> None:
    world = the_world("gpt2")
    answers = decode(world.lm, Jacobi(mode="jacobi", budget=budget), world.prompts, Settings(max_tokens=TOKENS))
    for prompt, answer in zip(world.prompts, answers, strict=True):
        assert answer.tokens == world.oracle.answer(prompt, Settings(max_tokens=TOKENS)).tokens


@pytest.mark.parametrize(("mode", "block"), SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_system_is_triangular(family: str, mode: str, block: int) -> None:
    world = the_world(family)
    for prompt in world.prompts:
        graph = traced(Jacobi(mode=mode, block=block), world, prompt)
        right, count = graph.right, len(graph.answer.tokens)
        assert graph.iterations <= count - 1  # the prompt's forward gave a token, and each iteration one at least
        for t, y in enumerate(graph.iterates):
            assert y.settled >= t + 1
            # Once settled, right for ever.
            assert all(right[t][: y.settled])
        settled = [y.settled for y in graph.iterates]
        assert settled == sorted(set(settled))
        assert settled[-1] == count
        rows = [sum(row[: y.settled]) for row, y in zip(right, graph.iterates, strict=True)]
        assert rows == sorted(rows)
        # The last token of a block is read by no row: right there early, it saves nothing.
        assert graph.saved == graph.answer.stats.accepted <= len(graph.early)


def test_keys_of_the_settled_prefix_are_kept_and_only_the_rest_is_scored(world: World, listen: Listen) -> None:
    prompt = world.prompts[1]
    heard = listen(world.lm)
    graph = traced(Jacobi(mode="jacobi"), world, prompt)
    text = prompt + graph.answer.tokens
    (_, *pasts), (_, *trees) = heard.pasts, heard.trees
    assert len(pasts) == graph.iterations > 5
    for y, past, tree in zip(graph.iterates, pasts, trees, strict=False):
        assert past == text[: len(prompt) + y.settled - 1]
        assert tree.tokens[0] == text[len(past)]
        assert len(tree) == TOKENS - y.settled
        assert tree.is_chain


@pytest.mark.parametrize("mode", ["gauss_seidel", "hybrid"])
def test_a_block_of_one_is_plain_decoding(mode: str, world: World, listen: Listen) -> None:
    heard = listen(world.lm)
    mine, plain = (decode(world.lm, m, [world.prompts[1]], Settings(max_tokens=TOKENS))[0]
                   for m in (Jacobi(mode=mode, block=1), Plain()))  # fmt: skip
    assert mine.tokens == plain.tokens
    assert mine.stats.target_forwards == plain.stats.target_forwards == TOKENS
    assert all(len(tree) == 1 for tree in heard.trees[1:TOKENS])


def test_behind_its_blocks_hybrid_is_plain_decoding(world: World, listen: Listen) -> None:
    heard = listen(world.lm)
    graph = traced(Jacobi(block=4, blocks=2), world, world.prompts[1])
    provided = [t for t, y in enumerate(graph.iterates) if y.settled < 1 + 2 * 4]
    sizes = [len(tree) for tree in heard.trees[1:]]
    assert all(size == 1 for size in sizes[len(provided) :])
    assert len(sizes) - len(provided) == TOKENS - 9
    assert sizes[0] == 4


@pytest.mark.parametrize("mode", MODES)
def test_it_ends_in_the_iteration_that_settles_an_end_of_text(mode: str) -> None:
    world = the_world("gpt2")
    prompt = world.prompts[2]
    whole = traced(Jacobi(mode=mode, block=4), world, prompt)
    text = whole.answer.tokens
    last = max(set(text), key=text.index)
    place = text.index(last)
    needed = next(t for t, y in enumerate(whole.iterates) if y.settled > place)
    assert needed < whole.iterations or place == TOKENS - 1
    with ending_at(world.lm, frozenset([last])):
        # Padding is the end of text now, which is another first guess.
        graph = traced(Jacobi(mode=mode, block=4, guess="last"), world, prompt)
        again = traced(Jacobi(mode=mode, block=4, guess="last"), world, prompt, ignore_eos=True)
    assert graph.answer.tokens == text[: place + 1]
    assert graph.answer.finish_reason == "stop"
    assert graph.iterations == next(t for t, y in enumerate(again.iterates) if y.settled > place)


def test_what_is_guessed_first(world: World) -> None:
    run = Run(world.lm, [7, 8, 9], Settings(max_tokens=9))
    run.ids += [5]
    first = {name: Jacobi(block=6, guess=name) for name in GUESSES}
    guesses = {name: method._token(run, method.start(run)) for name, method in first.items()}
    assert (guesses["pad"], guesses["last"]) == (0, 5)
    assert guesses["random"] in (7, 8, 9)
    with ending_at(world.lm, frozenset([33, 11])):
        assert first["pad"]._token(run, first["pad"].start(run)) == 11


@pytest.mark.parametrize(("field", "value"), [("mode", "newton"), ("guess", "best"), ("block", 0), ("blocks", 0)])
def test_fields_are_checked(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r} is not allowed"):
        Jacobi(**{field: value})


@pytest.mark.parametrize("mode", MODES)
def test_iterations_save_forwards_where_tokens_depend_little_on_each_other(mode: str) -> None:
    """On a random network of absolute positions, and on the embedded model where it repeats itself."""
    world = the_world("gpt2")
    random = less_work(Jacobi(mode=mode), world.lm, suite.repetitive(world)).tokens_per_forward
    lm = load(dtype="float32")
    prompt = lm.encode("the cat sat on the mat. the cat sat on the mat. the cat sat on the mat. the cat sat on")
    real = less_work(Jacobi(mode=mode), lm, prompt).tokens_per_forward
    print(f"{mode}: {random:.2f} tokens per forward of the random network, {real:.2f} of the embedded model")
    assert random > (2.5 if mode == "jacobi" else 1.1)


@pytest.fixture(scope="module")
def sentences() -> tuple[Any, list[list[int]], NetworkOracle]:
    lm = load(dtype="float32")
    network = AutoModelForCausalLM.from_pretrained(EMBEDDED / "mini", dtype=torch.float32).eval()
    lines = [line for name in ("spec", "code", "long") for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    return lm, [lm.encode(json.loads(line)["prompt"])[:40] for line in lines], NetworkOracle(lm, network)


@pytest.mark.parametrize("mode", MODES)
def test_two_hundred_sentences_are_those_of_transformers(mode: str, sentences: Any) -> None:
    lm, prompts, oracle = sentences
    settings = Settings(max_tokens=16)
    answers = decode(lm, Jacobi(mode=mode), prompts, settings)
    report = Compared()
    expected = oracle.answers(prompts, settings, together=34)
    for number, (found, theirs) in enumerate(zip(answers, expected, strict=True)):
        compare(f"{mode}, sentence {number}", number, found, theirs, 1e-4, report)
    forwards = sum(a.stats.target_forwards - a.stats.prefill_forwards + 1 for a in answers)
    tokens = sum(len(a.tokens) for a in answers)
    print(f"{mode}: {tokens} tokens in {forwards} forwards ({tokens / forwards:.3f}), ties {report.near_ties}")
    assert report.answers >= 200
    assert len(report.near_ties) <= 2
    assert forwards < tokens
