from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.decode.speculative.base import Budget, Outcome
from segue.decode.speculative.lookahead import Lookahead, Window
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.laws.base import decode
from segue.laws.edges import ending_at
from segue.laws.suite import repetitive
from segue.laws.worlds import World, toy_world
from segue.models.lm import LM
from segue.models.run import Run

Listen = Callable[[LM], Any]
WIDE = Budget(nodes=512, depth=100)
W, N = 4, 4
METHOD = Lookahead(window=W, level=N, guesses=3)


class Stepper:
    """Runs lookahead round by round on greedy text, with the state in reach."""

    def __init__(self, lm: LM, prompt: list[int], method: Lookahead = METHOD) -> None:
        self.lm, self.method = lm, method
        self.run = Run(lm, prompt, Settings(max_tokens=60))
        self.state: Window = method.start(self.run)
        self.tree = DraftTree.root(0)
        lm.forward([(self.run.sequence, DraftTree.chain(prompt[:-1]), Want(logits="none"))])
        self.run.sequence.commit(list(range(len(prompt) - 1)))

    def round(self) -> Outcome:
        """One round that accepts nothing of the guesses: the text goes on by one token."""
        self.tree = self.method.propose(self.run, self.state, WIDE)
        (scores,) = self.lm.forward([(self.run.sequence, self.tree, Want())])
        token = scores.argmax()[0]
        token = 0 if token in self.lm.eos_ids else token  # this text goes on
        self.run.sequence.commit([0], token)
        self.run.ids.append(token)
        outcome = Outcome(self.tree, scores, [0], token)
        self.method.observe(self.run, self.state, outcome)
        return outcome


def test_the_window_fills_and_then_keeps_its_shape(world: World) -> None:
    steps = Stepper(world.lm, world.prompts[1])
    widths = [[len(row) for row in steps.state.rows]]
    for _ in range(N):
        steps.round()
        widths.append([len(row) for row in steps.state.rows])
    # Row 0 is kept without its column 0, the current token.
    assert widths[0] == [W + N - 3]
    assert widths[1] == [W + N - 4, W + N - 3]
    assert widths[2:] == [[W - 1, *[W] * (N - 2)]] * 3
    assert len(steps.tree) - sum(not s for s in steps.tree.scored_only) == W - 1 + (N - 2) * W


def test_a_window_row_sees_the_text_its_part_of_row_0_and_its_column(world: World) -> None:
    steps = Stepper(world.lm, world.prompts[1])
    compared = 0
    for _ in range(N + 2):
        text = list(steps.run.ids)
        rows = [list(row) for row in steps.state.rows]
        nodes = METHOD.propose(steps.run, steps.state, WIDE) and steps.state.nodes
        outcome = steps.round()
        for level, row in enumerate(rows):
            for place, token in enumerate(row):
                # Row 0 is kept from column 1 on: its entry `place` stands in column place + 1.
                column = place + 1 if level == 0 else place
                ahead = rows[0][:column]
                below = [rows[i][place] for i in range(1, level + 1)]
                node = nodes[level][column]
                assert (outcome.tree.tokens[node], outcome.tree.scored_only[node]) == (token, True)
                expected = world.oracle.answer([*text, *ahead, *below], Settings(max_tokens=1)).logits[0]
                assert torch.allclose(outcome.scores.row(node), expected, atol=1e-4)
                compared += 1
    assert compared > 50


def test_the_pool_holds_columns_and_what_the_model_says_after_them(world: World) -> None:
    steps = Stepper(world.lm, world.prompts[1])
    for _ in range(N - 2):
        steps.round()
    assert not steps.state.pool
    text, rows = list(steps.run.ids), [list(row) for row in steps.state.rows]
    rows[0] = [text[-1], *rows[0]]
    steps.round()
    expected = set()
    for column in range(W):
        prefix = [*text, *rows[0][1 : column + 1], *(row[column] for row in rows[1:])]
        last = world.oracle.answer(prefix, Settings(max_tokens=1)).tokens[0]
        expected.add((*(row[column] for row in rows), last))
    pooled = {(first, *rest) for first, known in steps.state.pool.items() for rest in known}
    assert pooled == expected
    assert all(len(ngram) == N for ngram in pooled)


def test_the_pool_keeps_the_most_recent() -> None:
    method = Lookahead(guesses=2)
    state = Window([[]], random.Random(0))
    for ngram in [(1, 2), (1, 3), (1, 2), (1, 4), (5, 6)]:
        method._pool(state, ngram)
    assert [list(known) for known in state.pool.values()] == [[(2,), (4,)], [(6,)]]


def test_the_most_recent_guesses_come_first_and_share_nodes(world: World) -> None:
    run = Run(world.lm, [3, 4, 5], Settings())
    method = Lookahead(window=0, level=3, guesses=3)
    state = method.start(run)
    for ngram in [(5, 1, 2), (5, 1, 3), (5, 7, 8), (4, 9, 9)]:
        method._pool(state, ngram)
    tree = method.propose(run, state, WIDE)
    assert (tree.tokens, tree.parents) == ([5, 7, 8, 1, 3, 2], [-1, 0, 1, 0, 3, 3])
    assert not any(tree.scored_only)
    assert method.propose(run, state, Budget(nodes=9, depth=1)).tokens == [5, 7, 1]


def test_it_saves_forwards_with_an_empty_pool_at_the_start(world: World) -> None:
    (answer,) = decode(world.lm, Lookahead(), [repetitive(world)], Settings(max_tokens=40))
    assert answer.stats.tokens_per_forward > 1
    assert not world.lm.stores


def test_without_a_window_the_prompt_pool_is_prompt_lookup() -> None:
    text = [1, 2, 3, 4, 9, 5, 1, 2, 3, 6, 7, 8, 5, 4, 1]
    run = Run(toy_world(10).lm, text, Settings())
    pool = Lookahead(window=0, level=5, guesses=1, prompt_pool=True)
    lookup = PromptLookup(max_ngram=1, draft_tokens=4)
    for more in ([], [2], [3, 5]):
        run.ids += more
        mine = pool.propose(run, pool.start(run), WIDE)
        theirs = lookup.propose(run, lookup.start(run), WIDE)
        assert isinstance(theirs, DraftTree)
        assert mine.tokens == theirs.tokens
        assert len(mine) == 5


def test_the_prompt_pool_grows_with_the_text() -> None:
    run = Run(toy_world(10).lm, [1, 2, 3, 4, 5, 6], Settings())
    method = Lookahead(window=0, level=3, guesses=9, prompt_pool=True)
    state = method.start(run)
    method.propose(run, state, WIDE)
    run.ids += [7, 8]
    method.propose(run, state, WIDE)
    pooled = [(first, *rest) for first, known in state.pool.items() for rest in known]
    assert pooled == [(i, i + 1, i + 2) for i in range(1, 7)]


def test_an_end_of_text_never_enters_the_window(world: World) -> None:
    prompt = world.prompts[1]
    free = Stepper(world.lm, prompt)
    for _ in range(N):
        free.round()
    predicted = next(token for token in free.state.rows[-1] if token not in free.run.ids)
    with ending_at(world.lm, frozenset([predicted])):
        steps = Stepper(world.lm, prompt)
        for _ in range(N + 2):
            steps.round()
            # Tokens of the text take its place.
            assert all(predicted not in row for row in steps.state.rows)


def test_the_filling_never_decides_the_text(world: World) -> None:
    prompt = repetitive(world)
    texts = [decode(world.lm, Lookahead(), [prompt], Settings(max_tokens=30, seed=seed))[0].tokens for seed in range(3)]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(("field", "least"), [("window", 0), ("level", 2), ("guesses", 1)])
def test_fields_are_checked(field: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"{field}={least - 1} is not allowed: at least {least}"):
        Lookahead(**{field: least - 1})


@pytest.mark.parametrize(("window", "level"), [(1, 2), (1, 5), (2, 2), (5, 3), (0, 2), (12, 2)])
def test_all_shapes_write_the_same(window: int, level: int, world: World) -> None:
    settings = Settings(max_tokens=30)
    prompt = repetitive(world)
    for pool in (False, True):
        method = Lookahead(window=window, level=level, prompt_pool=pool)
        (answer,) = decode(world.lm, method, [prompt], settings)
        assert answer.tokens == world.oracle.answer(prompt, settings).tokens
