from __future__ import annotations

import json
from pathlib import Path

import pytest

from segue.models.crossencoder import cross_encoder
from segue.models.embedding import encoder
from segue.models.ranking import rank
from tests.models.encoders import save_cross_encoder

from .conftest import Call

QUERY = "the red sea"
DOCUMENTS = ["a bird", "The sea is far away", "the old house"]


def test_cosines_of_the_packaged_encoder(call: Call) -> None:
    expected = rank(encoder(), QUERY, DOCUMENTS)
    result = call("rerank", QUERY, *DOCUMENTS)
    assert result.err == ""
    assert result.out == "".join(f"{score:.4f}\t{i}\t{DOCUMENTS[i]}\n" for i, score in expected)
    assert (
        call("rerank", QUERY, "--top-n", 1, stdin="\n".join(DOCUMENTS).encode()).out == result.out.split("\n")[0] + "\n"
    )


def test_a_cross_encoder(call: Call, tmp_path: Path) -> None:
    save_cross_encoder(tmp_path / "tiny")
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(DOCUMENTS)))
    answer = json.loads(call("rerank", QUERY, "--texts", source, "-m", tmp_path / "tiny", "--json").out)
    assert (answer["model"], answer["scored_by"]) == ("tiny", "cross-encoder")
    expected = rank(cross_encoder(str(tmp_path / "tiny")), QUERY, DOCUMENTS)
    assert [(one["index"], one["id"]) for one in answer["results"]] == [(i, i) for i, _ in expected]
    assert [one["relevance_score"] for one in answer["results"]] == pytest.approx([score for _, score in expected])


def test_what_is_wrong_is_told(call: Call, tmp_path: Path) -> None:
    assert "two ways to rank" in call("rerank", "q", "d", "-m", tmp_path, "--embedder", "minilm").error()
    assert "no reranker in" in call("rerank", "q", "d", "-m", tmp_path).error()
    assert "truncate" in call("rerank", "q", "sea " * 300).error()
