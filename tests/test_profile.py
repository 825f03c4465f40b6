"""A profile survives its file, and a bad file says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segue.profile import Profile, read_profile

PROFILE = Profile("token_recycling", {"nodes": 16, "budget": "gain"}, "mini", "bfloat16", 2, "a machine")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    PROFILE.write(path)
    assert read_profile(path) == PROFILE
    assert PROFILE.build().nodes == 16
    assert list(tmp_path.iterdir()) == [path]


def test_another_model_or_precision_is_noticed() -> None:
    assert PROFILE.foreign("mini", "bfloat16", 2) == ""
    assert (
        PROFILE.foreign("other", "float32", 2) == "model mini instead of other, precision bfloat16 instead of float32"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format 9"),
        ({"method": "nothing"}, "no method is called 'nothing'"),
        ({"fields": {"node": 3}}, "did you mean nodes"),
        ({"extra": 1}, "not a profile"),
    ],
)
def test_faults_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "p.json"
    PROFILE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_profile(path)


def test_a_missing_or_torn_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no profile at"):
        read_profile(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"method": ')
    with pytest.raises(ValueError, match="is not a profile"):
        read_profile(tmp_path / "torn.json")
