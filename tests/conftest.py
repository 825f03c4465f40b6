"""Tests run two at a time (pytest-xdist), so each keeps to one thread; tiny networks are fastest so anyway."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
