"""What the name of a model means where a folder here has the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from segue.models.source import EMBEDDED, place

SHIPPED = ("mini", str(EMBEDDED / "mini"))


def test_a_folder_of_an_embedded_models_name_hides_it_only_where_it_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(None) == place("mini") == SHIPPED
    Path("mini").mkdir()  # as after `segue train mini --out mini`
    assert place(None) == place("mini") == SHIPPED
    with pytest.raises(ValueError, match=r"mini has no config\.json"):
        place("./mini")
    Path("mini/config.json").write_text("{}")
    assert place("mini") == ("mini", "mini")
    assert place(None) == SHIPPED
