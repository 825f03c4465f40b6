"""Trained drafters: networks beside a model, by kind, and the one that goes with a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

from segue.models.heads import published
from segue.models.heads.base import SHEET, DraftNetwork, Shape, fitted, load, save
from segue.models.heads.blockwise import BlockwiseHeads
from segue.models.heads.chimera import ChimeraNetwork
from segue.models.heads.exit import ExitLayer
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.speculator import Speculator
from segue.models.lm import LM

__all__ = ["KINDS", "DraftNetwork", "Shape", "embedded", "fitted", "load", "save", "trained"]

KINDS: dict[str, type[DraftNetwork]] = {
    cls.kind: cls for cls in (BlockwiseHeads, Speculator, ChimeraNetwork, JakiroNetwork, ExitLayer)
}
DRAFTERS = Path(__file__).parent / "embedded"  # by base model and kind


def trained(lm: LM, cls: type[DraftNetwork], source: str | os.PathLike[str] | DraftNetwork | None) -> DraftNetwork:
    """The drafter of the kind of `cls` for `lm`: a network as it is, a folder, ours or one of a published format, read
    once per model, or, for None, the one that is embedded for this very model. ValueError where there is none, or where
    it is another model's."""
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
    for sheet in sorted(DRAFTERS.glob(f"*/{kind}/{SHEET}")):
        if lm.identity and json.loads(sheet.read_text())["base"]["identity"] == lm.identity:
            return sheet.parent
    return None
