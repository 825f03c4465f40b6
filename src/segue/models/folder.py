"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_folder(staging: Path, folder: Path) -> None:
    """Put a finished folder in the place of `folder`, which is never half of either. Files become readable for all:
    safetensors writes for the owner alone."""
    for file in staging.iterdir():
        file.chmod(0o644)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(staging, folder)
    shutil.rmtree(old, ignore_errors=True)
