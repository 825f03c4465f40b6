"""A profile: which method, with which fields, was found best for a model on a machine. Written by `segue tune`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segue import catalog
from segue.models.variant import parse

FORMAT = 2


@dataclass(frozen=True)
class Profile:
    """What `segue tune` found."""

    method: str
    fields: dict[str, Any]
    model: str
    precision: str
    threads: int
    machine: str
    variant: str | None = None  # of the model, where another one than it loads as was best
    found: dict[str, Any] = field(default_factory=dict)  # figures: ratio to plain with its interval, prompts, ...
    format: int = FORMAT

    def build(self) -> Any:
        """The method object."""
        return catalog.build(self.method, **self.fields)

    def options(self) -> dict[str, Any]:
        """How the model is loaded: as the variant that was best."""
        return parse(self.variant).options() if self.variant is not None else {}

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        staging = path.with_suffix(path.suffix + ".tmp")
        staging.write_text(json.dumps(asdict(self), indent=1) + "\n")
        staging.replace(path)

    def foreign(self, model: str, precision: str, threads: int) -> str:
        """In what it was made for something else than this, in words; empty where it fits."""
        pairs = {
            "model": (self.model, model),
            "precision": (self.precision, precision),
            "threads": (self.threads, threads),
        }
        return ", ".join(f"{what} {was} instead of {now}" for what, (was, now) in pairs.items() if was != now)


def read_profile(path: Path) -> Profile:
    """The profile in a file; ValueError says what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"no profile at {path}: make one with segue tune -o {path}")
    try:
        data = json.loads(path.read_text())
        profile = Profile(**data)
        if profile.format != FORMAT:
            raise ValueError(f"format {profile.format}, this version reads {FORMAT}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a profile of segue tune ({error})") from None
    profile.build()
    if profile.variant is not None:
        parse(profile.variant)
    return profile
