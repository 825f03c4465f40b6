"""How a language model was trained so far: a file beside its weights, from which a later run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from segue.train.recipes import LanguageModel

FILE = "training.json"


@dataclass(frozen=True)
class Record:
    """The runs that made a model."""

    legs: Sequence[Mapping[str, Any]] = ()  # the first one first
    read: Mapping[str, int] = field(default_factory=dict)  # tokens of each source, by its name

    def text(self) -> str:
        return json.dumps({"legs": list(self.legs), "read": dict(self.read)}, indent=1) + "\n"

    @classmethod
    def of(cls, folder: Path, recipe: LanguageModel) -> Self:
        """That of the model in `folder`; ValueError where a run of `recipe` cannot go on from it."""
        if not (folder / "config.json").is_file():
            raise ValueError(f"no model in {folder}: config.json is missing; give a model that segue train made")
        config = json.loads((folder / "config.json").read_text())
        for name, wanted in asdict(recipe.shape).items():
            found = config.get(name)
            if found != wanted:
                raise ValueError(f"the model in {folder} has {name}={found}, recipe {recipe.name!r} has {wanted}")
        place = folder / FILE
        if not place.is_file():
            raise ValueError(f"{place} is missing, which says what the model has read; give one that segue train made")
        record = json.loads(place.read_text())
        if set(record["read"]) != set(recipe.mixture):
            raise ValueError(f"{place} is of other sources than recipe {recipe.name!r}: {', '.join(record['read'])}")
        return cls(record["legs"], {name: record["read"][name] for name in recipe.mixture})
