"""What an ablation keeps on disk: nothing is counted twice, nothing stays that is no longer true, and tables say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segue.bench.ablation_page import BEGIN, END, Results, arms_table, pairs_table, put

SETTING = {"prompts": 3, "shape": (1, 2)}


def record(tokens: list[int], forwards: list[int]) -> dict[str, Any]:
    return {"method": "m()", "equal": 3, "counts": {"tokens": tokens, "forwards": forwards}}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    found = Results(tmp_path / "results.json", SETTING)
    found.data["looping"] = [True, False, False]
    found.arm("far", "a", lambda: record([8, 6, 4], [2, 3, 4]))
    found.arm("near", "b", lambda: record([8, 6, 4], [8, 6, 4]))
    return found


def test_an_arm_is_counted_once_and_again_where_it_is_another(results: Results) -> None:
    def never() -> dict[str, Any]:
        raise AssertionError("it is known")

    again = Results(results.path, SETTING)
    assert again.arm("far", "a", never)["counts"]["tokens"] == [8, 6, 4]
    assert again.data["looping"] == [True, False, False]
    assert again.arm("twin", "b", never) == again.arms["near"]
    assert again.arm("twin", "b", never) is not again.arms["near"]
    assert again.arm("far", "c", lambda: record([1, 1, 1], [1, 1, 1]))["counts"]["tokens"] == [1, 1, 1]
    assert Results(results.path, SETTING).arms["far"]["key"] == "c"


def test_every_arm_has_a_line(results: Results) -> None:
    text = results.path.read_text()
    assert json.loads(text) == json.loads(json.dumps(results.data))
    assert sum('"counts"' in line for line in text.splitlines()) == 2
    assert list(results.path.parent.iterdir()) == [results.path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"arms": {}}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results.json holds no results of a study: remove it"):
        Results(tmp_path / "results.json", SETTING)


def test_another_setting_is_refused(results: Results) -> None:
    with pytest.raises(ValueError, match=r"was counted in another setting: remove it, or run with --fresh"):
        Results(results.path, SETTING | {"prompts": 4})
    whatever = Results(results.path, None)  # to print what was counted
    assert whatever.data == json.loads(json.dumps(results.data))


def test_pairs_are_judged_where_both_arms_are_there(results: Results) -> None:
    results.judge([("far", "near", "tokens per forward"), ("far", "absent", "tokens per forward")])
    (pair,) = Results(results.path, SETTING).data["pairs"]
    assert (pair["arm"], pair["than"], pair["says"]) == ("far", "near", "undecided")  # a prompt of three saves nothing
    assert pair["all"][0] == 1.0
    assert (pair["looping"], pair["others"][0]) == ([3.0, 3.0, 3.0], pytest.approx(10 / 7 - 1, abs=1e-4))
    row = pairs_table(results).splitlines()[2]
    assert row.startswith("| far | near | tokens per forward | +1.000 [+0.000, +3.000] | +3.000 [+3.000, +3.000] |")
    assert row.endswith("| undecided |")


def test_the_table_of_arms(results: Results) -> None:
    lines = arms_table(results, ["tokens per forward"]).splitlines()
    assert lines[0] == (
        "| arm | method | tokens per forward, all (3) | tokens per forward, looping (1) "
        "| tokens per forward, others (2) | answers equal |"
    )
    assert lines[2] == "| far | `m()` | 2.00 | 4.00 | 1.43 | 3 |"


def test_a_page_keeps_what_is_around_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put(page, "new")
    put(page, "newer")
    assert page.read_text() == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the markers"):
        put(page, "new")
