"""The conscience of the repository: rules that hold for every file and every method, checked without naming any."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from segue import catalog
from segue.catalog import Entry

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "segue"
FILES = sorted(path for path in SOURCE.rglob("*.py"))
METHODS = list(catalog.entries().values())
LONGEST = 300
DRAWERS = {"utils", "helpers", "common", "misc", "core", "base_utils", "util", "helper"}
GLOBAL_SEEDS = {"torch.manual_seed", "torch.seed", "torch.cuda.manual_seed_all", "random.seed", "np.random.seed"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_file = pytest.mark.parametrize("path", FILES, ids=relative)
every_method = pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)


def loaded(entry: Entry) -> Any:
    return getattr(importlib.import_module(entry.module), entry.class_name)


@every_file
def test_files_are_short_and_named_for_what_is_in_them(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert path.stem not in DRAWERS
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names or path.parent == SOURCE
    assert path.stem in ("__init__", "__main__") or "from __future__ import annotations" in text
    assert ast.get_docstring(ast.parse(text)), "a module says what it is for"


@every_file
def test_users_get_errors_not_assertions(path: Path) -> None:
    """An assert is for our own invariants: no check of fields, where what is given comes from a user, uses one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            assert not any(isinstance(inner, ast.Assert) for inner in ast.walk(node))


@every_file
def test_nobody_touches_the_global_random_state(path: Path) -> None:
    calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
    assert not calls & GLOBAL_SEEDS


def test_every_module_of_a_room_is_a_method() -> None:
    rooms = [path for room in catalog.ROOMS for path in (SOURCE / room).rglob("*.py")]
    # Budget controllers decide how much a method drafts, stores hold what it retrieves from, drivers and scorers are
    # what choosing methods are put together of; they are no methods.
    others = ("budget", "store", "parts")
    modules = {path for path in rooms if path.stem not in ("__init__", "base") and path.parent.name not in others}
    assert modules == {entry.path for entry in METHODS}
    assert len(METHODS) >= 5


@every_method
def test_the_card_that_is_read_is_the_card_that_is_imported(entry: Entry) -> None:
    cls = loaded(entry)
    assert cls.card == entry.card
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert [field.name for field in dataclasses.fields(cls)] == [field.name for field in entry.fields]
    for field, stated in zip(dataclasses.fields(cls), entry.fields, strict=True):
        assert field.default == stated.default


@every_method
def test_every_field_has_a_default_and_says_what_it_is(entry: Entry) -> None:
    for field in dataclasses.fields(loaded(entry)):
        assert field.default is not dataclasses.MISSING, field.name
    for stated in entry.fields:
        assert stated.comment, stated.name


@every_method
def test_a_card_is_complete(entry: Entry) -> None:
    card = entry.card
    assert card.exact
    assert card.needs
    assert card.paper.title
    assert entry.name in ("plain", "auto") or (card.paper.id and card.paper.year > 1990 and card.claim is not None)
    assert card.claim is None or (card.claim.value is None) == (card.claim.unit == "none")


@every_method
def test_the_algorithm_is_numbered_and_on_the_first_screen(entry: Entry) -> None:
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", entry.doc, flags=re.MULTILINE)]
    assert 3 <= len(numbers) <= 8
    assert numbers == list(range(1, len(numbers) + 1))
    assert entry.summary.endswith(".")
    lines = entry.path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("class ") and entry.class_name in line)
    assert first <= 60


@every_method
def test_a_method_has_one_public_class_and_a_test_of_its_own(entry: Entry) -> None:
    assert (ROOT / "tests" / entry.family / f"test_{entry.name}.py").is_file()
    camel = "".join(part.title() for part in entry.name.split("_"))
    assert entry.class_name.lower() == camel.lower()
    assert list(inspect.signature(loaded(entry).run).parameters) == ["self", "run"]


@every_method
def test_every_promise_has_a_law(entry: Entry) -> None:
    """That the law also ran is checked where they run: tests/laws/test_suite.py."""
    laws = {path.stem for path in (SOURCE / "laws").glob("*.py")}
    for promise in entry.card.exact:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(promise).__name__).lower()
        assert name in laws


def test_listing_methods_does_not_load_torch() -> None:
    code = (
        "import sys, segue; assert 'plain' in [m['name'] for m in segue.methods()]; "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_contract_of_independence_covers_every_method() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["type"] == "independence")
    for entry in METHODS:
        package = entry.module.rpartition(".")[0]
        assert entry.module in contract["modules"] or f"{package}.*" in contract["modules"], entry.module
    # A method may import its own family's base, controllers and stores; the families that verify may import the one
    # loop of draft and verify. Nothing else is excepted.
    loop = "segue.decode.speculative.base"
    allowed = (".base", ".budget", ".budget.**", ".store", ".store.**", ".heads", ".heads.**")
    for exception in contract["ignore_imports"]:
        method, imported = exception.split(" -> ")
        assert imported == loop or imported in [method.removesuffix(".*") + end for end in allowed], exception
