from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from segue.train import LanguageModel
from segue.train.batches import Reader, prepare
from segue.train.evaluate import agreement, heldout


@pytest.fixture
def tokens(micro: LanguageModel, corpus: Path, tmp_path: Path) -> Path:
    prepare(corpus, tmp_path, micro.mixture, 300, 0, None)
    return tmp_path


def write(folder: Path, name: str, count: int) -> None:
    np.arange(count, dtype=np.uint16).tofile(folder / f"{name}.train.bin")


def test_batches_keep_the_mixture(tmp_path: Path) -> None:
    write(tmp_path, "a", 1000)
    write(tmp_path, "b", 1000)
    reader = Reader(tmp_path, {"a": 0.7, "b": 0.3}, seed=1)
    for _ in range(25):
        reader.batch(4, 16)
    assert reader.taken == {"a": 70 * 16, "b": 30 * 16}


def test_an_epoch_reads_each_window_once_and_the_next_in_another_order(tmp_path: Path) -> None:
    write(tmp_path, "a", 16 * 20 + 1)
    reader = Reader(tmp_path, {"a": 1.0}, seed=1)
    first, second = (reader.batch(20, 16)[:, 0].tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(0, 320, 16))
    assert first != second


def test_the_counts_are_the_whole_state(tmp_path: Path) -> None:
    write(tmp_path, "a", 500)
    write(tmp_path, "b", 300)
    one, other = (Reader(tmp_path, {"a": 0.5, "b": 0.5}, seed=3) for _ in range(2))
    one.batch(7, 16)
    other.taken = dict(one.taken)
    assert torch.equal(one.batch(5, 32), other.batch(5, 32))


def test_a_short_source_repeats(tmp_path: Path) -> None:
    write(tmp_path, "a", 5)
    assert Reader(tmp_path, {"a": 1.0}, seed=1).batch(1, 8).tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]


def test_prepared_files_are_kept(micro: LanguageModel, tokens: Path) -> None:
    made = {path.name: path.stat().st_mtime_ns for path in tokens.iterdir()}
    prepare(Path("nowhere"), tokens, micro.mixture, 300, 0, None)
    assert {path.name: path.stat().st_mtime_ns for path in tokens.iterdir()} == made


def test_a_foreign_tokenizer_is_refused(micro: LanguageModel, corpus: Path, tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 300 tokens but the recipe needs 400"):
        prepare(corpus, tmp_path / "other", micro.mixture, 400, 0, tokens / "tokenizer.json")


def test_a_source_without_documents_is_named(micro: LanguageModel, tmp_path: Path, tokens: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="source 'tales' has no documents"):
        prepare(tmp_path / "empty", tmp_path / "out", {"tales": 1.0}, 300, 0, tokens / "tokenizer.json")


@dataclasses.dataclass
class Constant:
    """A model that gives every position the same logits."""

    row: torch.Tensor

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Constant:
        self.logits = self.row.expand(*input_ids.shape, -1)
        return self


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tokens: Path) -> None:
    scores = heldout(Constant(torch.zeros(300)), tokens, ["maths"])
    assert scores["maths"]["perplexity"] == pytest.approx(300, rel=1e-3)


def test_agreement_is_the_overlap_of_the_two_distributions(tokens: Path) -> None:
    sure, unsure = torch.full((300,), -1e9), torch.zeros(300)
    sure[7] = 0.0
    agreed = agreement(Constant(sure), Constant(unsure), tokens, ["maths"], limit=50)["maths"]
    assert agreed == {"overlap": pytest.approx(1 / 300, abs=1e-4), "greedy": 0.0, "tokens": 50}
    itself = agreement(Constant(sure), Constant(sure), tokens, ["maths"], limit=50)["maths"]
    assert (itself["overlap"], itself["greedy"]) == (1.0, 1.0)
