"""Tests run two at a time (pytest-xdist), so each keeps to one thread; tiny networks are fastest so anyway."""

from __future__ import annotations

import os
import tempfile

import torch

# Measured costs go to a folder of this run's own, shared by its tests and the commands they start.
os.environ.setdefault("SEGUE_CACHE", tempfile.mkdtemp(prefix="segue-cache-"))
torch.set_num_threads(1)
