"""The method list against the catalog, and reports that are shown but run nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from segue import catalog
from segue.docs import measured
from segue.ui import listing
from tests.ui.test_stream import Reader


def test_every_method_is_listed_with_its_card() -> None:
    page = Reader(listing.methods())
    assert [tag for tag, _ in page.tags].count("tr") == len(catalog.entries()) + 1
    for entry in catalog.entries().values():
        for part in (entry.name, entry.summary, entry.card.paper.title, measured(entry)):
            assert part in page.text


def test_words_narrow_the_list() -> None:
    wanted = [e.name for e in catalog.entries().values() if e.family == "choose/mbr"]
    page = Reader(listing.methods("choose/MBR  bayes"))
    count = [tag for tag, _ in page.tags].count("tr") - 1
    assert 0 < count <= len(wanted)
    nothing = Reader(listing.methods("<script>no such method</script>"))
    assert nothing.text.startswith(f"0 of {len(catalog.entries())} methods")
    assert "no such method" not in nothing.text


def test_fields_of_a_method() -> None:
    page = Reader(listing.fields("lookahead"))
    for field in catalog.find("lookahead").fields:
        assert field.name + "=" in page.text
        assert field.comment in page.text
    assert "no fields" in listing.fields("plain")
    assert listing.fields("<b>") == listing.fields(None) == ""


def test_reports(tmp_path: Path) -> None:
    report = tmp_path / "<b>.html"
    report.write_text("<!doctype html><html><script>alert(1)</script></html>")
    listing.check_reports([report])
    page = Reader(listing.reports([report, report]))
    frames = [attributes for tag, attributes in page.tags if tag == "iframe"]
    assert [frame["src"] for frame in frames] == ["/reports/0", "/reports/1"]
    assert all(frame["sandbox"] is None for frame in frames)  # given without a grant
    assert "b" not in {tag for tag, _ in page.tags}
    assert "segue bench" in Reader(listing.reports([])).text
    with pytest.raises(ValueError, match="no report at"):
        listing.check_reports([tmp_path / "absent.html"])
    other = tmp_path / "x.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match="no HTML page"):
        listing.check_reports([other])
