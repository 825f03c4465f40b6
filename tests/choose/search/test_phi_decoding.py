"""Phi-decoding: the law lists all it may answer; here what it finds, what it costs, and its figures on real text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import segue
from segue.api import Model
from segue.choose.parts import foresight
from segue.choose.parts.unit import Unit
from segue.choose.search import phi_decoding as module
from segue.choose.search.phi_decoding import PhiDecoding
from segue.data import ConstraintError, Settings
from segue.decode.plain import Plain
from segue.laws.base import LawBroken, decode
from segue.laws.targets.phi_decoding import hold
from segue.laws.worlds import network_world, toy_world
from segue.models.toy import ToyLM
from segue.ops.automaton import Phrases

QUESTION = "Question: Tom has 3 apples and buys 4 more. He gives 2 away. How many apples does he have?\nAnswer:"
LINE, GOOD, BAD = 5, 1, 2


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")  # rollouts are read together, which in bfloat16 can change a token


@pytest.fixture(scope="module")
def tree() -> ToyLM:
    """After the prompt the first step is good with probability 0.2 and bad with 0.8; the good one is followed by what
    is nearly certain, the bad one by one of two tokens again and again."""
    lm = ToyLM(7, 1, 0)
    rows = torch.full((7, 7), 1e-6, dtype=torch.float64)
    rows[0, GOOD], rows[0, BAD] = 0.2, 0.8
    rows[GOOD, LINE] = rows[LINE, 6] = rows[6, 6] = 1.0
    for token in (BAD, 3, 4):
        rows[token, 3] = rows[token, 4] = 0.5
    lm.table = rows.log()
    return lm


def test_it_finds_the_step_that_ends_well(tree: ToyLM) -> None:
    """The greedy first step leads to a bad ending; looking ahead shows it."""
    method = PhiDecoding(foresights=2, unit=Unit("step", most=2, marks=(LINE,)), tau=1.0, sigma=3.0)
    found, sampled = [], []
    for seed in range(50):
        settings = Settings(max_tokens=7, temperature=1.0, seed=seed)
        found += decode(tree, method, [[0]], settings)
        sampled += decode(tree, Plain(), [[0]], settings)
    good, chance = (sum(answer.tokens[0] == GOOD for answer in answers) for answers in (found, sampled))
    (greedy,) = decode(tree, Plain(), [[0]], Settings(max_tokens=7))
    print(f"good first steps of 50: {good}, by sampling {chance}")
    assert greedy.tokens[0] == BAD
    assert chance <= 15
    assert good >= 22  # by chance once in 10,000 times


def test_what_it_counts_is_what_a_hand_counts(tree: ToyLM) -> None:
    """Two candidates of one token, the worse pruned; three tokens simulated behind the other, then written."""
    method = PhiDecoding(beams=1, rollouts=2, foresights=1, unit="token", tau=1.0, show=True)
    settings = [Settings(max_tokens=4, temperature=1.0, seed=seed) for seed in range(40)]
    answers = [decode(tree, method, [[0]], one)[0] for one in settings]
    both = next(a for a in answers if len({one["tokens"][0] for one in a.trace[0]["drawn"]}) == 2)
    seen = both.trace[0]
    assert (seen["steps"], seen["pruned"], seen["share"]) == (2, 1, 1.0)
    assert both.tokens[0] == BAD == seen["drawn"][seen["kept"][0]]["tokens"][0]
    assert both.trace[1]["answers"] == 1
    # The prompt; both steps; two of three tokens that are simulated, then of those that are written (none reads the
    # last).
    assert both.stats.rows == 1 + 2 + 2 + 2
    assert both.stats.target_forwards == 1 + 1 + 2 + 2
    assert both.stats.tokens == 4


def test_weights_are_those_of_scipy_and_scikit_learn(model: Model) -> None:
    from scipy.special import softmax
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    method = PhiDecoding(beams=2, rollouts=3, foresights=2, least=3, show=True)
    answer = model.generate(QUESTION, method=method, max_tokens=48, seed=2, stop=["\nQuestion"])
    assert len(answer.trace) == 3
    assert json.loads(json.dumps(answer.as_dict()))["trace"] == answer.trace
    for seen in answer.trace[:2]:
        paths = seen["paths"]
        texts = [model.lm.decode(path["ending"]) for path in paths]
        vectors = TfidfVectorizer(token_pattern=module.clustered.__globals__["WORD"]).fit_transform(texts).toarray()
        labels = KMeans(min(3, len(set(texts))), n_init=4, random_state=0).fit(vectors).labels_
        sizes = [sum(labels == label) / len(labels) for label in labels]
        w = (softmax([path["A"] / 0.1 for path in paths]) + softmax(sizes)) / 2
        assert [path["w"] for path in paths] == pytest.approx(w.tolist(), abs=1e-9)
        assert seen["share"] == pytest.approx(max(sizes))
        # Steps are lines.
        for path in seen["drawn"]:
            step = model.lm.decode(path["tokens"][path["begin"] :])
            assert "\n" not in step[:-1]
    assert answer.text == model.lm.decode(answer.tokens).partition("\nQuestion")[0]


def test_one_beam_that_looks_at_nothing_is_plain_sampling(model: Model) -> None:
    method = PhiDecoding(beams=1, rollouts=1, foresights=0)
    for settings in ({"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.3, "top_k": 20, "repetition_penalty": 1.1}):
        found = model.generate(QUESTION, method=method, max_tokens=24, seed=5, **settings)
        assert found.tokens == model.generate(QUESTION, method="plain", max_tokens=24, seed=5, **settings).tokens


def test_it_stops_where_all_agree(model: Model) -> None:
    """With one token left to draw from, all endings are the same."""
    for least in (1, 2):
        method = PhiDecoding(beams=2, rollouts=2, foresights=5, unit=Unit("token", least=3), least=least)
        answer = model.generate(QUESTION, method=method, max_tokens=20, temperature=1.0, top_k=1, seed=0)
        assert [seen.get("depth") for seen in answer.trace] == [*range(1, least + 1), None]
        assert answer.tokens == model.generate(QUESTION, method="plain", max_tokens=20).tokens
    never = PhiDecoding(beams=1, rollouts=3, foresights=3, unit="token", least=1, agreed=1.0)
    answer = model.generate(QUESTION, method=never, max_tokens=20, temperature=1.0, top_k=1, seed=0)
    assert len(answer.trace) == 4


def test_all_rollouts_share_their_forwards(model: Model) -> None:
    """Two rounds of steps of three tokens, of eight candidates each, and all that is simulated."""
    method = PhiDecoding(beams=2, rollouts=4, foresights=2, unit=Unit("token", least=3), sigma=9.0)
    answer = model.generate(QUESTION, method=method, max_tokens=12, ignore_eos=True, seed=1)
    # The prompt; 3 for the steps and 8 for what is simulated behind them; 3 and 5 of the second round; 5 of the end.
    assert answer.stats.target_forwards == 1 + 3 + 8 + 3 + 5 + 5


@pytest.mark.parametrize("unit", ["sentence", "entropy", "whole", "token"])
def test_other_steps(model: Model, unit: str) -> None:
    method = PhiDecoding(beams=2, rollouts=2, foresights=2, unit=unit)
    answer = model.generate(QUESTION, method=method, max_tokens=16, seed=3)
    assert 1 <= len(answer.candidates or ()) <= 2
    assert answer.candidates[0].tokens == answer.tokens  # type: ignore[index]
    if unit == "whole":  # whole answers are their own endings
        assert [seen.get("depth") for seen in answer.trace] == [1, None]


def test_a_model_without_words_is_told_what_to_do(tree: ToyLM) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer: give marks \(token ids\), or take the unit token"):
        decode(tree, PhiDecoding(), [[0]], Settings(max_tokens=4))


def test_answers_satisfy_their_constraint(model: Model) -> None:
    method = PhiDecoding(beams=2, rollouts=2, foresights=2, unit=Unit("token", least=2))
    answer = model.generate(QUESTION, method=method, max_tokens=12, seed=1, regex=r"He has [0-9]{1,3} apples\.")
    assert answer.text.startswith("He has ")
    assert answer.text.endswith(" apples.")
    world = toy_world(3, 2)
    phrase = Phrases(3, {2}, [(1, 1, 0)])
    for seed in range(5):
        settings = Settings(max_tokens=6, constraint=phrase, seed=seed)
        (answer,) = decode(world.lm, PhiDecoding(beams=2, rollouts=2, unit="token"), [[0]], settings)
        assert "110" in "".join(map(str, answer.tokens))
    with pytest.raises(ConstraintError, match="its shortest text has 3 tokens"):
        decode(world.lm, PhiDecoding(unit="token"), [[0]], Settings(max_tokens=2, constraint=phrase))


def test_its_answers_can_be_ranked_by_others(model: Model) -> None:
    method = segue.method("mbr", inner="phi_decoding", samples=3)
    answer = model.generate(QUESTION, method=method, seed=2, max_tokens=10)
    assert answer.trace[-1]["drawn"] == 3


def test_samples_of_one_prompt(model: Model) -> None:
    method = PhiDecoding(beams=2, rollouts=2, foresights=1)
    answers = model.generate(QUESTION, method=method, n=2, seed=1, max_tokens=12)
    alone = model.generate(QUESTION, method=method, seed=1, max_tokens=12)
    assert answers[0].tokens == alone.tokens


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beams", 0), ("rollouts", 0), ("foresights", -1), ("clusters", 0), ("least", 0), ("tau", 0.0), ("sigma", -1.0),
        ("sharpness", 0.0), ("agreed", 0.0), ("agreed", 1.5),
    ],
)  # fmt: skip
def test_bad_fields_name_the_value_and_the_way_out(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed"):
        segue.method("phi_decoding", **{field: value})


def test_an_unknown_unit_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="unit='stpe' is not known: did you mean step"):
        segue.method("phi_decoding", unit="stpe")


WRONG = {
    "no F of the beam": (foresight.Path, "advantage", property(lambda path: path.value)),
    "sums instead of means": (foresight, "_mean", sum),
    "only clusters": (PhiDecoding, "_weigh", lambda self, run, paths: ([0] * len(paths), [1.0] * len(paths))),
    "nothing pruned": (PhiDecoding, "_prune", lambda self, run, means: list(range(len(means)))),
    "drawn with equal chances": (
        module, "_drawn", lambda run, weights, count: DRAWN(run, [1.0] * len(weights), count),
    ),
    "clusters by length": (module, "clustered", lambda texts, most: [len(text) % most for text in texts]),
}  # fmt: skip
DRAWN = module._drawn


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_breaks_the_law(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(*WRONG[wrong])
    with pytest.raises(LawBroken):
        hold(PhiDecoding(), network_world("llama") if wrong == "sums instead of means" else toy_world(2))
