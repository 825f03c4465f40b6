"""Generated pages say what the cards say, and a change is noticed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from segue import catalog, docs
from segue.models.heads import KINDS
from segue.train import DRAFTERS, TUNED


def test_every_method_has_a_page_and_a_row() -> None:
    pages = docs.generated()
    table = docs.table()
    for entry in catalog.entries().values():
        page = pages[docs.ROOT / "docs" / "methods" / entry.family / f"{entry.name}.md"]
        assert entry.card.paper.title in page
        assert all(f"`{field.name}`" in page for field in entry.fields)
        assert f"[{entry.name}](docs/methods/" in table


def test_the_page_of_trained_drafters_names_every_kind_and_number() -> None:
    rows = (docs.ROOT / "docs" / "trained-drafters.md").read_text().splitlines()
    for kind in DRAFTERS:
        (row,) = (row for row in rows if row.startswith(f"| `{kind}` |"))
        numbers = [field.name for field in fields(KINDS[kind].shape_type)[2:]]
        assert row.split("|")[-2].strip() == ", ".join(f"`{name}`" for name in numbers)
    for kind in TUNED:
        assert any(row.startswith(f"| `{kind}` |") for row in rows), kind


def test_check_fails_on_a_page_that_was_edited_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(f"# Title\n{docs.BEGIN}\nold\n{docs.END}\nrest\n")
    assert docs.main(["--check"]) == 1
    assert docs.main(["--write"]) == 0
    assert docs.main(["--check"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("rest\n")
    page = tmp_path / "docs" / "methods" / "decode" / "plain.md"
    page.write_text("mine")
    (page.parent / "gone.md").write_text("a method that was removed")
    capsys.readouterr()
    assert docs.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "plain.md" in said
    assert "gone.md" in said
    assert docs.main(["--write"]) == 0
    assert not (page.parent / "gone.md").exists()


def test_usage() -> None:
    assert docs.main([]) == 2
