"""Finds every method by walking the tree and reading the cards from the syntax, without importing anything heavy."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue import card as card_module
from segue.card import Card
from segue.models.source import DRAFTERS

ROOT = Path(__file__).parent
ROOMS = ("segment", "encode", "decode", "choose", "pipelines")
STORES = {"a datastore", "a dense datastore", "documents"}
TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
TRAINED, TUNED = "trained heads", "a model tuned by "
RESULTS = ROOT.parents[1] / "results"  # beside src/ in a checkout; absent in an installed wheel
CARD_CLASSES = ("Card", "Paper", "Claim", "SameTokens", "SameDistribution", "SameTarget", "Limit", "Learned")


@dataclass(frozen=True)
class Field:
    """A setting of a method, as its dataclass field states it."""

    name: str
    type: str
    default: Any
    comment: str


@dataclass(frozen=True)
class Entry:
    """One method of the catalog."""

    name: str
    family: str
    class_name: str
    module: str
    path: Path
    card: Card
    fields: tuple[Field, ...]
    doc: str  # module docstring: the idea and the numbered algorithm
    summary: str  # first line of the class docstring
    base: Path  # file of its family's loop, which may not exist

    def result(self) -> dict[str, Any] | None:
        """The measured result that bench wrote, marked stale when the method's file changed since; None if none."""
        path = RESULTS / self.family / f"{self.name}.json"
        if not path.is_file():
            return None
        result: dict[str, Any] = json.loads(path.read_text())
        result["stale"] = result.get("source_hash") != self.source_hash()
        return result

    def source_hash(self) -> str:
        """Hash of the method's file and its family's base: what a measured result depends on."""
        sources = [self.path.read_bytes(), self.base.read_bytes() if self.base.is_file() else b""]
        return hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]

    def able(self, has_draft: bool) -> bool:
        """Whether it runs with default fields, given at most what is embedded for the embedded model (a draft model,
        trained heads): nobody can guess a datastore."""
        needs = set(self.card.needs)
        if needs & STORES or any(need.startswith(TUNED) for need in needs):
            return False
        if TRAINED in needs and not any(DRAFTERS.glob(f"*/{self.name}")):
            return False
        return has_draft or not needs & {"a draft model", TRAINED}

    @property
    def same_tokens(self) -> bool:
        """Whether its greedy output is promised to be the model's own."""
        return any(type(promise).__name__ == "SameTokens" for promise in self.card.exact)

    def as_dict(self) -> dict[str, Any]:
        data = self.card.as_dict()
        return {
            "name": self.name,
            "family": self.family,
            "summary": self.summary,
            **data,
            "fields": [{"name": f.name, "type": f.type, "default": f.default, "help": f.comment} for f in self.fields],
            "result": self.result(),
        }


@functools.cache
def entries() -> dict[str, Entry]:
    """All methods by name."""
    found: dict[str, Entry] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.stem in ("__init__", "base"):
                continue
            entry = read(path)
            if entry is None:
                continue
            if entry.name in found:
                raise ValueError(f"two methods are called {entry.name}: {found[entry.name].path} and {path}")
            found[entry.name] = entry
    return found


def read(path: Path) -> Entry | None:
    """The method a file defines: its one class with a card; None if it has none."""
    source = path.read_text()
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _card_node(node) is not None]
    if not classes:
        return None
    if len(classes) > 1:
        raise ValueError(f"{path} has {len(classes)} classes with a card: one method is one file")
    node = classes[0]
    call = _card_node(node)
    parts = path.relative_to(ROOT).with_suffix("").parts
    base = _base_file(tree, node, path)
    return Entry(
        name=path.stem,
        family="/".join(parts[:-1]),
        class_name=node.name,
        module=".".join(("segue", *parts)),
        path=path,
        card=_build(call),
        fields=tuple(_all_fields(node, source, base)),
        doc=ast.get_docstring(tree) or "",
        summary=(ast.get_docstring(node) or "").split("\n")[0],
        base=base,
    )


def find(name: str) -> Entry:
    """The entry of that name; ValueError with the nearest names where there is none."""
    known = entries()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"no method is called {name!r}: {hint}")


def build(name: str, /, **values: Any) -> Any:
    """A method object by name with its fields; strings are converted to the field's type."""
    entry = find(name)
    cls = getattr(importlib.import_module(entry.module), entry.class_name)
    known = {f.name: f for f in entry.fields}
    for field in values:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'no fields'}"
            raise ValueError(f"{name} has no field {field!r}: {hint}")
    given = {field: convert(name, known[field], value) for field, value in values.items()}
    for stated in entry.fields:
        if stated.type == "Methods" and not given.get(stated.name):
            given[stated.name] = _members(entry, known, given)
        elif stated.type == "Drafter" and isinstance(value := given.get(stated.name, stated.default), str):
            given[stated.name] = _held(find(value), known, given)
    return cls(**given)


def _held(inner: Entry, outer: dict[str, Field], given: dict[str, Any]) -> Any:
    """The method that another one holds in a field of type Drafter. Fields that both have (a draft model) are handed
    on, those that hold a method apart."""
    shared = [f.name for f in inner.fields if f.name in given and f.name in outer and f.type != "Drafter"]
    return build(inner.name, **{name: given[name] for name in shared})


def _members(entry: Entry, known: dict[str, Field], given: dict[str, Any]) -> tuple[Any, ...]:
    """The lossless methods of the same family that a choosing method has at hand, within its `allow` and `deny`. A
    field that a member shares with the chooser (a draft model) is handed on."""
    allow, deny = (given.get(name, known[name].default) for name in ("allow", "deny"))
    for name in (*allow, *deny):
        find(name)
    members = []
    for other in entries().values():
        lossless = {type(promise).__name__ for promise in other.card.exact} >= {"SameTokens", "SameDistribution"}
        if other.family != entry.family or other.name == entry.name or not lossless:
            continue
        if other.name in deny or (allow and other.name not in allow):
            continue
        members.append(_held(other, known, given))
    return tuple(members)


def convert(method: str, field: Field, value: Any) -> Any:
    """A field's value from text, by the type the dataclass states; anything else is checked against it."""
    kind = field.type
    if kind == "Names":
        # In a list of methods, where commas part the methods, names are joined by +.
        names = value.replace("+", ",").split(",") if isinstance(value, str) else value
        return tuple(name.strip() for name in names if name.strip())
    if kind == "Methods":
        members = value.split(",") if isinstance(value, str) else value
        return tuple(build(member.strip()) if isinstance(member, str) else member for member in members)
    if kind == "bool" and isinstance(value, str):
        if value.lower() in TRUE | FALSE:
            return value.lower() in TRUE
    elif kind in ("int", "float") and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if kind == "float" and number == number:
            return number
        if kind == "int" and number.is_integer():
            return int(number)
    elif kind not in ("bool", "int", "float") or (kind == "bool" and isinstance(value, bool)):
        return value
    article = {"bool": "true or false", "int": "a whole number", "float": "a number"}[kind]
    raise ValueError(f"{method}: {field.name}={value!r} is not allowed: {article} (default {field.default})")


def _card_node(node: ast.ClassDef) -> ast.expr | None:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and any(getattr(t, "id", "") == "card" for t in statement.targets):
            return statement.value
    return None


def _base_file(tree: ast.Module, node: ast.ClassDef, path: Path) -> Path:
    """The file of a method's loop: the base.py that its base class is imported from, else the one of its own room."""
    return next(iter(_base_files(tree, {getattr(base, "id", "") for base in node.bases})), path.parent / "base.py")


def _base_files(tree: ast.Module, names: Collection[str] = ()) -> list[Path]:
    """The base.py files that a module imports from: those that any of these names come from, or all."""
    found = []
    for statement in tree.body:
        if not isinstance(statement, ast.ImportFrom) or (statement.module or "").rpartition(".")[2] != "base":
            continue
        if not names or set(names) & {alias.name for alias in statement.names}:
            found.append(ROOT.joinpath(*str(statement.module).split(".")[1:]).with_suffix(".py"))
    return found


def _build(node: ast.expr | None) -> Any:
    """The value of a literal in which the card's classes may be called."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", "")
        if name not in CARD_CLASSES or node.args:
            raise ValueError(f"line {node.lineno}: a card is a literal of {', '.join(CARD_CLASSES)} with keywords only")
        return getattr(card_module, name)(**{str(k.arg): _build(k.value) for k in node.keywords})
    if isinstance(node, ast.Tuple):
        return tuple(_build(item) for item in node.elts)
    assert node is not None
    return ast.literal_eval(node)


def _all_fields(node: ast.ClassDef, source: str, base: Path) -> list[Field]:
    """A method's fields in the order of dataclasses: its family's base class comes first."""
    found: dict[str, Field] = {}
    if base.is_file():
        classes: dict[str, ast.ClassDef] = {}
        lines: dict[str, list[str]] = {}
        for path in (base, *_base_files(ast.parse(base.read_text()))):
            text = path.read_text()
            own = {cls.name: cls for cls in ast.parse(text).body if isinstance(cls, ast.ClassDef)}
            classes |= own
            lines |= dict.fromkeys(own, text.splitlines())
        for cls in _lineage(node, classes):
            found |= {field.name: field for field in _fields(cls, lines[cls.name])}
    found |= {field.name: field for field in _fields(node, source.splitlines())}
    return list(found.values())


def _lineage(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """Those of `classes` that a class inherits from, the remotest first."""
    line: list[ast.ClassDef] = []
    for name in (getattr(base, "id", "") for base in node.bases):
        if name in classes:
            line += [*_lineage(classes[name], classes), classes[name]]
    return line


def _fields(node: ast.ClassDef, lines: list[str]) -> list[Field]:
    found = []
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = ast.unparse(statement.annotation)
        if annotation.startswith("ClassVar"):
            continue
        default = None if statement.value is None else _build(statement.value)
        text = lines[(statement.end_lineno or statement.lineno) - 1][statement.end_col_offset or 0 :]
        found.append(Field(statement.target.id, annotation, default, text.partition("#")[2].strip()))
    return found
