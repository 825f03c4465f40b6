"""What is wrong with a body that cannot be read, in words that name the value and what would be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from segue.serve.faults import Fault

# What pydantic puts into a place to tell the forms apart that a value may have.
FORM = re.compile(r"str|int|float|bool|list\[.*\]|Part|Document|JsonSchema|dict\[.*\]")
NO_OBJECT = "the body must be a JSON object, sent with the header Content-Type: application/json"
SHOWN = 60  # characters of a value


def unread(errors: Sequence[Any]) -> Fault:
    """The fault that pydantic's errors about a body come to: of the first field that is wrong, the innermost place."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Fault(400, f"the body is not JSON: {first['ctx']['error']}, at character {first['loc'][-1]}")
    field = _place(first)[:1]
    if not field:
        return Fault(400, NO_OBJECT)
    innermost = max((error for error in errors if _place(error)[:1] == field), key=lambda error: len(_place(error)))
    place = _place(innermost)
    where = ".".join(place)
    kind = innermost["type"]
    if kind == "missing":
        return Fault(400, f"{where} is missing", param=where)
    if kind in ("extra_forbidden", "none_required"):
        return Fault(400, f"{where} is not supported by this server: leave it out", param=where)
    wanted = dict.fromkeys(_wanted(error) for error in errors if _place(error) == place)
    return Fault(400, f"{where}={_shown(innermost['input'])} is not allowed: {' or '.join(wanted)}", param=where)


def _place(error: Any) -> tuple[str, ...]:
    parts = [str(part) for part in error["loc"][1:]]
    return tuple(part for n, part in enumerate(parts) if not n or not FORM.fullmatch(part))


def _wanted(error: Any) -> str:
    if error["type"] == "too_short":
        return f"at least {error['ctx']['min_length']} of them"
    return str(error["msg"]).removeprefix("Input should be ")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 4] + " ..."
