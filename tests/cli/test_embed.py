from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segue.models.embedding import encoder
from tests.models.encoders import save_encoder

from .conftest import Call

TEXTS = ["the old house", "a bird", "The sea is far away"]


def test_all_ways_to_give_texts_are_the_same(call: Call, tmp_path: Path) -> None:
    lines, objects = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    lines.write_text("\n".join(TEXTS) + "\n")
    objects.write_text("".join(json.dumps(text if i else {"text": text}) + "\n" for i, text in enumerate(TEXTS)))
    expected = np.stack([row.numpy() for row in encoder()(TEXTS)])
    printed = [
        call("embed", *TEXTS),
        call("embed", "--texts", lines),
        call("embed", "--texts", objects),
        call("embed", stdin=lines.read_bytes()),
        call("embed", "-", "--jsonl", stdin=objects.read_bytes()),
    ]
    assert {result.err for result in printed} == {""}
    assert len({result.out for result in printed}) == 1
    rows = [json.loads(line) for line in printed[0].out.splitlines()]
    assert np.array_equal(np.array(rows, dtype=np.float32), expected)


def test_where_vectors_go(call: Call, tmp_path: Path) -> None:
    expected = np.stack([row.numpy() for row in encoder()(TEXTS)])
    answer = json.loads(call("embed", *TEXTS, "--json").out)
    assert (answer["model"], answer["dimensions"]) == ("all-MiniLM-L6-v2", 384)
    assert [(one["index"], one["text"]) for one in answer["data"]] == list(enumerate(TEXTS))
    assert np.array_equal(np.array([one["embedding"] for one in answer["data"]], dtype=np.float32), expected)
    assert call("embed", *TEXTS, "-o", tmp_path / "v.npy").out == ""
    saved = np.load(tmp_path / "v.npy")
    assert saved.dtype == np.float32
    assert np.array_equal(saved, expected)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"id": "x", "text": TEXTS[0]}) + "\n")
    call("embed", "--texts", source, "-o", tmp_path / "v.jsonl")
    (line,) = (tmp_path / "v.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["id"], record["text"]) == ("x", TEXTS[0])
    assert np.array_equal(np.array(record["embedding"], dtype=np.float32), expected[0])


def test_an_encoder_of_ones_own(call: Call, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "own", matryoshka_dimensions=[8])
    row = json.loads(call("embed", TEXTS[0], "-m", folder, "--dimensions", 8).out)
    whole = encoder(str(folder))(TEXTS[:1])[0][:8]
    assert row == pytest.approx((whole / whole.norm()).tolist(), abs=1e-6)
    assert "text 2: a text of 70 tokens is longer" in call("embed", "a", "sea " * 70, "-m", folder).error()
    assert call("embed", "a", "sea " * 70, "-m", folder, "--truncate").code == 0


def test_what_is_wrong_is_told(call: Call, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('"a"\n{"txt": 1}\n')
    assert "bad.jsonl, line 2" in call("embed", "--texts", tmp_path / "bad.jsonl").error()
    assert "is not JSON" in call("embed", "--jsonl", stdin=b"x").error()
    assert "stdin has no text" in call("embed", stdin=b"\n\n").error()
    assert "two sources" in call("embed", "a", "--texts", tmp_path / "bad.jsonl").error()
    assert ".npy for a matrix" in call("embed", "a", "-o", tmp_path / "v.txt").error()
    assert "there is no folder" in call("embed", "a", "-m", "nowhere", "-o", tmp_path / "no" / "v.npy").error()
    (tmp_path / "v.npy").mkdir()
    assert "is a folder: name a file" in call("embed", "a", "-m", "nowhere", "-o", tmp_path / "v.npy").error()
    assert "give one of them" in call("embed", "a", "--json", "-o", tmp_path / "v.npy").error()
    assert "no encoder in" in call("embed", "a", "-m", tmp_path).error()
    assert "was not trained to be cut" in call("embed", "a", "--dimensions", 7).error()
