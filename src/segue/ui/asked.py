"""From what stands in the form to requests, or to plain words about what is wrong with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from segue import catalog
from segue.api import Model, Request, make_settings
from segue.models.method import Method

MOST_TOKENS = 1024  # new tokens: a page with more is no longer read by anybody
MOST_CHARACTERS = 200_000  # of a prompt
HARMLESS = ("int", "float", "bool", "Names", "Methods")  # fields that name no file
MOST_NUMBER = 256  # in a guest's field


class Wrong(ValueError):
    """Something in the form cannot be run; `side` is 0 or 1 where it is one method's, else None."""

    def __init__(self, message: str, side: int | None = None) -> None:
        super().__init__(message)
        self.side = side


@dataclass(frozen=True)
class Form:
    """What the page hands over, unchecked."""

    prompt: str
    methods: tuple[str, str]
    fields: tuple[str, str]  # NAME=VALUE, separated by spaces or lines
    max_tokens: Any
    temperature: Any
    seed: Any  # none: drawn


def requests(form: Form, model: Model, *, guests: bool = False) -> tuple[Request, Request]:
    """Both requests; raises Wrong. With `guests` the page is open to other machines: no field may name a file."""
    if not (form.prompt or "").strip():
        raise Wrong("The prompt is empty: type some text first.")
    if len(form.prompt) > MOST_CHARACTERS:
        raise Wrong(f"The prompt has {len(form.prompt)} characters: at most {MOST_CHARACTERS} here.")
    most = _whole("max tokens", form.max_tokens)
    if not 1 <= most <= MOST_TOKENS:
        raise Wrong(f"max tokens={most} is not allowed: 1 to {MOST_TOKENS} here.")
    seed = None if form.seed in (None, "") else _whole("seed", form.seed)
    if not isinstance(form.temperature, int | float):
        raise Wrong(f"temperature={form.temperature!r} is not allowed: a number, 0 for greedy.")
    try:
        settings = make_settings(max_tokens=most, temperature=float(form.temperature), seed=seed)
        ids = model.encode(form.prompt)
        model.lm.check_prompt(ids)
    except ValueError as error:
        raise Wrong(str(error)) from None
    left, right = (
        Request(ids, _method(form.methods[side], form.fields[side] or "", side, guests), settings) for side in (0, 1)
    )
    return left, right


def _whole(name: str, value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise Wrong(f"{name}={value!r} is not allowed: a whole number.")
    return int(number)


def _method(name: str, text: str, side: int, guests: bool) -> Method:
    try:
        given = assignments(text)
        if guests:
            _check_guest(name, given)
        built: Method = catalog.build(name, **given)
    except ImportError as error:
        raise Wrong(f"{name} needs {error.name}, which is not installed", side) from None
    except (ValueError, OSError) as error:
        raise Wrong(str(error), side) from None
    return built


def assignments(text: str) -> dict[str, str]:
    """The fields of a method from NAME=VALUE texts; a value with spaces stands in quotes."""
    try:
        items = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be read: {str(error).lower()}") from None
    values = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"{item!r} is not NAME=VALUE, e.g. window=5")
        values[name] = value
    return values


def _check_guest(name: str, given: dict[str, str]) -> None:
    """What only somebody at this machine may set: files, and numbers that fill its memory."""
    entry = catalog.find(name)
    known = {field.name: field for field in entry.fields}
    for key, value in given.items():
        if key not in known:
            continue  # the catalog tells of unknown ones, with the nearest
        if known[key].type not in HARMLESS:
            raise ValueError(f"{key} of {name} may name a file: it can only be set where segue ui listens at 127.0.0.1")
        if known[key].type in ("int", "float"):
            number = catalog.convert(name, known[key], value)
            if abs(number) > MOST_NUMBER:
                raise ValueError(f"{key}={value} is more than this page grants: at most {MOST_NUMBER}")
