"""Which method answers a request, from what it asks for and what the operator allows.

A request may set what only decides how much is drafted or searched. Whatever names a file, a model, code, an address or
a variable of the environment is the operator's: a field is open to requests only where it is known to be harmless, so
a new one is closed until somebody has looked at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segue import catalog
from segue.api import DEFAULT_METHOD
from segue.catalog import Entry, Field
from segue.models.method import Method
from segue.profile import Profile
from segue.serve.faults import Fault, refused
from segue.serve.limits import Limits

PLAIN_KINDS = ("int", "float", "bool", "Names", "Methods")
# Fields of other kinds that are words, numbers or texts of the request itself.
TEXTS = frozenset((
    "ask_passage", "ask_title", "branches", "budget", "by", "candidates", "cue", "duplicates", "early", "ends",
    "estimator", "eou", "expand", "form", "guess", "inner", "instruction", "kind", "layers", "merge", "mode",
    "noisy", "passage", "phrases", "r_star", "rank", "reader", "renumber", "retrieval", "search", "softmax",
    "start", "stop_phrase", "tag", "title_end", "widths",
))  # fmt: skip
WORDS = {"utility": ("chrf", "bleu"), "unit": ("entropy", "token", "step", "sentence", "whole", "byte")}


@dataclass(frozen=True)
class Choosing:
    """What the operator started the server with."""

    method: str = DEFAULT_METHOD  # of requests that name none
    fields: Mapping[str, Any] = field(default_factory=dict)  # its fields; those closed to requests serve every method
    profiles: Mapping[str, Profile] = field(default_factory=dict)  # by the name that requests use
    limits: Limits = field(default_factory=Limits)

    def default(self) -> Method:
        """The method of requests that ask for none."""
        built: Method = catalog.build(self.method, **self.fields)
        return built

    def choose(self, method: str | None, fields: Mapping[str, Any], profile: str | None) -> Method:
        """The method object; Fault says what a request may not ask for."""
        try:
            if profile is not None:
                return self._from_profile(profile, method, fields)
            if method is None and not fields:
                return self.default()
            entry = catalog.find(self.method if method is None else method)
            known = {stated.name: stated for stated in entry.fields}
            for name, value in fields.items():
                if name in known:  # the catalog tells of unknown ones, with the nearest
                    self._check(entry, known[name], value)
            own = self.fields if entry.name == self.method else {}
            theirs = {n: v for n, v in self.fields.items() if n in known and not _open(known[n])}
            built: Method = catalog.build(entry.name, **{**own, **theirs, **fields})
        except ValueError as error:
            raise refused(error, "method") from None
        return built

    def _from_profile(self, name: str, method: str | None, fields: Mapping[str, Any]) -> Method:
        if method is not None or fields:
            raise Fault(400, "profile brings a method and its fields: leave method and method_fields out")
        if name not in self.profiles:
            there = ", ".join(self.profiles) or "none"
            raise Fault(400, f"there is no profile {name[:60]!r} on this server; there are: {there}", param="profile")
        built: Method = self.profiles[name].build()
        return built

    def _check(self, entry: Entry, stated: Field, value: Any) -> None:
        where = f"method_fields.{stated.name}"
        allowed = WORDS.get(stated.name)
        if not _open(stated) or (allowed is not None and value not in allowed):
            hint = f" other than {', '.join(allowed)}" if allowed else ""
            message = f"{stated.name}{hint} of {entry.name} is set by the operator of this server, not by a request"
            raise Fault(400, message, param=where, code="field_not_allowed")
        most = self.limits.max_field
        if stated.type in ("int", "float"):
            value = catalog.convert(entry.name, stated, value)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > most:
            raise Fault(400, f"{stated.name}={value} is more than this server grants: at most {most}", param=where)
        if isinstance(value, str) and len(value) > self.limits.max_grammar_bytes:
            raise Fault(400, f"{stated.name} is longer than {self.limits.max_grammar_bytes} characters", param=where)
        if isinstance(value, dict) or (isinstance(value, list) and len(value) > most):
            raise Fault(400, f"{stated.name} is not a value that a request can set", param=where)
        if stated.name in ("branches", "widths", "expand", "candidates") and isinstance(value, str):
            numbers = [part for part in value.split(",") if part.strip().isdigit()]
            if any(int(part) > most for part in numbers):
                raise Fault(400, f"{stated.name}={value[:60]!r} has numbers above {most}", param=where)


def _open(stated: Field) -> bool:
    """Whether a request may set a field."""
    return stated.type in PLAIN_KINDS or stated.name in TEXTS or stated.name in WORDS
