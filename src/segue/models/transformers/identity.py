"""Which weights a network has, whatever precision they are loaded in: what is trained on one model must not be put
beside another."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

SAMPLES = 64  # values of every tensor


def identity(network: nn.Module) -> str:
    """A digest of evenly spaced values of every parameter, as bfloat16, and of their names and shapes. Taken before
    modules are exchanged or quantized; parameters that are not in memory (offloaded ones) count by shape alone."""
    digest = hashlib.sha256()
    values: list[torch.Tensor] = []
    for name, weight in sorted(network.named_parameters()):
        digest.update(json.dumps([name, list(weight.shape)]).encode())
        if weight.device.type != "meta" and type(weight.data) is torch.Tensor and weight.numel():
            places = torch.linspace(0, weight.numel() - 1, SAMPLES, dtype=torch.float64).long()
            values.append(weight.detach().reshape(-1)[places.to(weight.device)].to(torch.bfloat16).cpu())
    if values:
        digest.update(torch.cat(values).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
