from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segue import catalog
from segue.card import Card, Claim, Limit, Paper, SameTokens
from segue.catalog import Field, convert

METHOD = '''"""An idea.

1. Do it.
2. Stop.
"""


@dataclass(frozen=True)
class {name}:
    """What it is good for.

    More words.
    """

    kind: ClassVar[str] = "x"
    card = Card(
        paper=Paper(id="1", title="T", year=2020),
        claim=Claim(value=-2.5, unit="speed-up", baseline="b", setting="s"),
        exact=(SameTokens(), Limit(knob="width", exact_at=1)),
    )

    width: int = 3  # columns; 0 # switches it off
    share: float = -0.5  # of what
    name: str | None = None  # somebody
    pair: tuple[int, int] = (1, 2)  # two
'''


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty house to put methods in."""
    root = tmp_path / "src" / "segue"
    for room in ("decode/speculative", "choose"):
        (root / room).mkdir(parents=True)
    monkeypatch.setattr(catalog, "ROOT", root)
    monkeypatch.setattr(catalog, "RESULTS", tmp_path / "results")
    return root


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_method_is_read_without_being_imported(house: Path) -> None:
    path = put(house / "decode/speculative/mine.py", METHOD.format(name="Mine") + "\nraise SystemExit\n")
    put(house / "decode/speculative/base.py", METHOD.format(name="Base"))
    put(house / "decode/speculative/__init__.py", "")
    put(house / "decode/speculative/window.py", "class NoCard:\n    x = 1\n")
    (entry,) = catalog.entries.__wrapped__().values()
    assert (entry.name, entry.family, entry.class_name) == ("mine", "decode/speculative", "Mine")
    assert (entry.module, entry.path) == ("segue.decode.speculative.mine", path)
    assert entry.card == Card(
        paper=Paper(id="1", title="T", year=2020),
        claim=Claim(value=-2.5, unit="speed-up", baseline="b", setting="s"),
        exact=(SameTokens(), Limit(knob="width", exact_at=1)),
    )
    assert entry.fields == (
        Field("width", "int", 3, "columns; 0 # switches it off"),
        Field("share", "float", -0.5, "of what"),
        Field("name", "str | None", None, "somebody"),
        Field("pair", "tuple[int, int]", (1, 2), "two"),
    )
    assert entry.summary == "What it is good for."
    assert entry.doc.startswith("An idea.\n\n1. Do it.")
    json.dumps(entry.as_dict())


def test_a_room_may_use_the_loop_of_another(house: Path) -> None:
    """Inherited fields and the hash are those of the file that the base class is imported from."""
    loop = put(house / "choose/base.py", METHOD.format(name="Loop"))
    put(house / "decode/speculative/base.py", "LOOP = 1\n")
    child = METHOD.replace("width: int = 3  # columns; 0 # switches it off", "depth: int = 2  # levels")
    text = child.format(name="Mine").replace("class Mine:", "class Mine(Loop):")
    text = text.replace("@dataclass", "from segue.choose.base import Loop, Other\n\n@dataclass")
    entry = catalog.read(put(house / "decode/speculative/mine.py", text))
    assert entry is not None
    assert [field.name for field in entry.fields] == ["width", "share", "name", "pair", "depth"]
    before = entry.source_hash()
    put(house / "decode/speculative/base.py", "LOOP = 2\n")
    assert entry.source_hash() == before
    put(loop, loop.read_text() + "\n")
    assert entry.source_hash() != before


def test_a_name_has_one_method(house: Path) -> None:
    put(house / "decode/speculative/mine.py", METHOD.format(name="Mine"))
    put(house / "choose/mine.py", METHOD.format(name="Mine"))
    with pytest.raises(ValueError, match="two methods are called mine"):
        catalog.entries.__wrapped__()


def test_a_file_has_one_method(house: Path) -> None:
    path = put(house / "choose/two.py", METHOD.format(name="A") + METHOD.format(name="B").partition('"""\n\n\n')[2])
    with pytest.raises(ValueError, match="2 classes with a card"):
        catalog.read(path)


@pytest.mark.parametrize(
    "card", ["Card(make_paper())", "Card(paper=make_paper())", "Card(Paper(id='', title='', year=0))"]
)
def test_a_card_is_a_literal(card: str, house: Path) -> None:
    path = put(house / "choose/clever.py", f"class Clever:\n    card = {card}\n")
    with pytest.raises(ValueError, match="a card is a literal"):
        catalog.read(path)


def test_a_result_belongs_to_the_source_it_was_measured_on(house: Path) -> None:
    path = put(house / "choose/mine.py", METHOD.format(name="Mine"))
    entry = catalog.read(path)
    assert entry is not None
    assert entry.result() is None
    stored = catalog.RESULTS / "choose" / "mine.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps({"value": 2.0, "source_hash": entry.source_hash()}))
    assert entry.result() == {"value": 2.0, "source_hash": entry.source_hash(), "stale": False}
    put(path, path.read_text() + "\n")
    assert (entry.result() or {})["stale"]
    put(path, path.read_text().rstrip("\n") + "\n")
    put(house / "choose/base.py", "LOOP = 1\n")
    assert (entry.result() or {})["stale"]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no method is called 'lookahaed': did you mean lookahead"):
        catalog.find("lookahaed")
    with pytest.raises(ValueError, match=r"there are .*plain"):
        catalog.find("xyzzy")


def test_building_a_method() -> None:
    built = catalog.build("lookahead", window="5", prompt_pool="yes")
    assert (type(built).__name__, built.window, built.prompt_pool, built.level) == ("Lookahead", 5, True, 5)
    with pytest.raises(ValueError, match=r"lookahead has no field 'windw': did you mean window\?"):
        catalog.build("lookahead", windw=5)
    with pytest.raises(ValueError, match="plain has no field 'width': it has no fields"):
        catalog.build("plain", width=5)
    with pytest.raises(ValueError, match="window=-1 is not allowed"):
        catalog.build("lookahead", window=-1)


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        ("int", "5", 5), ("int", 5, 5), ("int", "5.0", 5), ("float", "0.5", 0.5), ("float", 1, 1.0),
        ("bool", "off", False), ("bool", "YES", True), ("bool", False, False), ("str | None", "a", "a"),
    ],
)  # fmt: skip
def test_values_from_text(kind: str, value: Any, result: Any) -> None:
    found = convert("m", Field("f", kind, None, ""), value)
    assert (found, type(found)) == (result, type(result))


@pytest.mark.parametrize(
    ("kind", "value", "allowed"),
    [
        ("int", "5.5", "a whole number"), ("int", "five", "a whole number"), ("int", True, "a whole number"),
        ("int", None, "a whole number"), ("int", "inf", "a whole number"), ("float", "nan", "a number"),
        ("float", [], "a number"), ("bool", "maybe", "true or false"), ("bool", 1, "true or false"),
    ],
)  # fmt: skip
def test_values_that_are_none(kind: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"m: f=.* is not allowed: {allowed}"):
        convert("m", Field("f", kind, 3, ""), value)
