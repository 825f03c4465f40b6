"""Objectives that models are tuned by for methods of their own, by the method's name."""

from __future__ import annotations

from segue.models.tuning.base import SHEET, Tuning, mask_token, read_sheet
from segue.models.tuning.space import SpaceTuning

__all__ = ["SHEET", "TUNINGS", "Tuning", "mask_token", "read_sheet"]

TUNINGS: dict[str, type[Tuning]] = {cls.kind: cls for cls in (SpaceTuning,)}
