"""Flags for the fields of `Settings`: names, types, defaults and help come from its source.

They are read from the syntax tree, because importing `segue.data` would load torch before a help text is shown.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.catalog import Field

SOURCE = Path(__file__).parents[1] / "data" / "settings.py"
PANEL = "Settings"
# A flag that is not given stays None, so that the default is the dataclass's and lines of a job may override it.
FORMS: dict[str, Any] = {
    "int": int | None,
    "int | None": int | None,
    "float": float | None,
    "bool": bool | None,
    "tuple[str, ...]": list[str] | None,
    "tuple[int, ...]": list[int] | None,
    "Mapping[int, float]": list[str] | None,
    "str | None": str | None,
    "str | Mapping[str, Any] | bool | None": str | None,
}
NO_FLAGS = ("Automaton | None",)  # only Python can make one
FILES = ("json_schema", "grammar")  # their texts may lie in a file


@functools.cache
def fields() -> tuple[Field, ...]:
    """The fields of `Settings`, each with the comment behind it."""
    source = SOURCE.read_text()
    lines = source.splitlines()
    (node,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    found = []
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert statement.value is not None
            # A factory makes something empty, and an empty default is not worth showing.
            made = isinstance(statement.value, ast.Call)
            default = None if made else ast.literal_eval(statement.value)
            comment = lines[statement.lineno - 1].partition("  # ")[2]
            kind = ast.unparse(statement.annotation)
            if kind not in NO_FLAGS:
                found.append(Field(statement.target.id, kind, default, comment))
    return tuple(found)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command` a flag for every field. Those that were given reach it as the mapping `settings`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "settings"]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        given = {field.name: _value(field, values.pop(field.name)) for field in fields()}
        command(**values, settings={name: value for name, value in given.items() if value is not None})

    wrapped.__signature__ = signature.replace(parameters=[*own, *map(_flag, fields())])  # type: ignore[attr-defined]
    return wrapped


def _flag(field: Field) -> inspect.Parameter:
    name = "--" + field.name.replace("_", "-")
    repeatable = FORMS[field.type] in (list[str] | None, list[int] | None)
    help_text = field.comment + ("; repeatable" if repeatable else "")
    help_text += "; a file, or its text" if field.name in FILES else ""
    metavar = {"Mapping[int, float]": "ID=BIAS", "tuple[str, ...]": "TEXT", "tuple[int, ...]": "ID"}.get(field.type)
    metavar = "FILE|TEXT" if field.name in FILES else metavar
    default = str(field.default) if isinstance(field.default, int | float) and field.type != "bool" else False
    option = typer.Option(name, help=help_text, show_default=default, metavar=metavar, rich_help_panel=PANEL)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[FORMS[field.type], option]
    )


def _value(field: Field, value: Any) -> Any:
    if value is not None and field.name in FILES:
        return _text(value)
    if value is None or not field.type.startswith("Mapping"):
        return value
    pairs = {}
    for item in value:
        token, _, bias = item.partition("=")
        try:
            pairs[int(token)] = float(bias)
        except ValueError:
            raise ValueError(f"--{field.name.replace('_', '-')} {item!r} is not ID=BIAS, e.g. 42=-5") from None
    return pairs


def _text(value: str) -> str:
    """What a file says, where the value names one (behind an @, or as it is), else the value."""
    from segue.cli.flags import read_text

    if value.startswith("@"):
        return read_text(Path(value[1:]))
    try:
        return read_text(Path(value)) if Path(value).is_file() else value
    except (OSError, ValueError):  # too long for the name of a file
        return value
