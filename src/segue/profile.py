"""A profile: which method, with which fields, was found best for a model on a machine. Written by `segue tune`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segue import catalog

FORMAT = 1


@dataclass(frozen=True)
class Profile:
    """What `segue tune` found."""

    method: str
    fields: dict[str, Any]
    model: str
    dtype: str
    threads: int
    machine: str
    found: dict[str, Any] = field(default_factory=dict)  # figures: ratio to plain with its interval, prompts, ...
    format: int = FORMAT

    def build(self) -> Any:
        """The method object."""
        return catalog.build(self.method, **self.fields)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        staging = path.with_suffix(path.suffix + ".tmp")
        staging.write_text(json.dumps(asdict(self), indent=1) + "\n")
        staging.replace(path)

    def foreign(self, model: str, dtype: str, threads: int) -> str:
        """In what it was made for something else than this, in words; empty where it fits."""
        pairs = {"model": (self.model, model), "dtype": (self.dtype, dtype), "threads": (self.threads, threads)}
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
    return profile
