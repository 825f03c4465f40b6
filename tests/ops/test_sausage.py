from __future__ import annotations

import itertools
import math
import random

import pytest

from segue.ops.sausage import best_paths


@pytest.mark.parametrize("seed", range(20))
def test_the_best_paths_of_all(seed: int) -> None:
    draw = random.Random(seed)
    columns = [[(token, math.log(draw.random())) for token in draw.sample(range(9), 3)] for _ in range(4)]
    steps = {(a, b, c): math.log(draw.random()) for a in range(-1, 9) for b in range(-1, 9) for c in range(9)}

    def step(path: tuple[int, ...], token: int) -> float:
        return 0.5 * steps[((-1, -1, *path)[-2], (-1, *path)[-1], token)]

    def score(path: tuple[int, ...]) -> float:
        own = sum(dict(column)[token] for column, token in zip(columns, path, strict=True))
        return own + sum(step(path[:i], path[i]) for i in range(4))

    every = sorted(itertools.product(*[[token for token, _ in column] for column in columns]), key=score, reverse=True)
    found = best_paths(columns, step, 7)
    assert [path for _, path in found] == every[:7]
    assert [value for value, _ in found] == pytest.approx([score(path) for path in every[:7]])
    assert len(best_paths(columns, step, 1000)) == 81


def test_without_a_model_only_what_is_given_is_looked_at() -> None:
    seen = []

    def step(path: tuple[int, ...], token: int) -> float:
        seen.append(path)
        return 0.0

    columns = [[(0, -0.1), (1, -2.0), (2, -3.0)]] * 5
    assert best_paths(columns, step, 1) == [(pytest.approx(-0.5), (0,) * 5)]
    assert len(seen) == 3 * 5
