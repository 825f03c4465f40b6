"""Where and with what a run was made, for its summary."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def provenance() -> dict[str, str | int]:
    """The machine, the number of threads and the versions that matter."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        fields = dict(line.split(":", 1) for line in listing.read_text().split("\n\n")[0].splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in named:
            return f"{named['model name']} family {named.get('cpu family')} model {named.get('model')}"
    return platform.processor() or platform.machine()
