"""Trained drafters: networks beside a model, by kind, and the one that goes with a model."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from segue.models.heads import published
from segue.models.heads.base import SHEET, DraftNetwork, Shape, check, fitted, load, save
from segue.models.heads.blockwise import BlockwiseHeads
from segue.models.heads.chimera import ChimeraNetwork
from segue.models.heads.exit import ExitLayer
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.speculator import Speculator
from segue.models.lm import LM
from segue.models.source import DRAFTERS

__all__ = ["KINDS", "DraftNetwork", "Shape", "embedded", "fitted", "load", "save", "trained"]

KINDS: dict[str, type[DraftNetwork]] = {
    cls.kind: cls for cls in (BlockwiseHeads, Speculator, ChimeraNetwork, JakiroNetwork, ExitLayer)
}


def trained(lm: LM, cls: type[DraftNetwork], source: str | os.PathLike[str] | DraftNetwork | None) -> DraftNetwork:
    """The drafter of the kind of `cls` for `lm`: a network as it is, a folder, ours or one of a published format, read
    once per model, or, for None, the one that is embedded for this very model. ValueError where there is none, or where
    it is another model's."""
    check(cls.kind, lm)
    if isinstance(source, DraftNetwork):
        if source.kind != cls.kind:
            raise ValueError(f"a drafter for {source.kind} was given, and {cls.kind} was to draft")
        return source.eval().requires_grad_(False)
    if source is None:
        folder = embedded(lm, cls.kind)
        if folder is None:
            raise ValueError(
                f"{lm.name} has no trained drafter for {cls.kind}: name its folder with heads=PATH, or train one with "
                f"segue train drafter {cls.kind} -m MODEL --data TEXTS"
            )
    else:
        folder = Path(source).expanduser()
    key = f"{cls.kind}:{folder}"
    if key not in lm.trained:
        ours = (folder / SHEET).exists() or not published.found(folder)
        lm.trained[key] = load(folder, cls, lm) if ours else published.load(folder, cls.kind, lm)
    found: DraftNetwork = lm.trained[key]
    return found


def embedded(lm: LM, kind: str) -> Path | None:
    """The folder of the drafter of that kind that the package has for this model's weights."""
    return _packaged().get((lm.identity, kind)) if lm.identity else None


@cache
def _packaged() -> dict[tuple[str, str], Path]:
    """The package's drafters by the identity of their base model and their kind; they do not change while it runs."""
    sheets = {sheet.parent: json.loads(sheet.read_text()) for sheet in sorted(DRAFTERS.glob(f"*/*/{SHEET}"))}
    return {(sheet["base"]["identity"], sheet["kind"]): folder for folder, sheet in sheets.items()}
