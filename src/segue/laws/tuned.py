"""Worlds whose model was tuned for a method, on a text of the laws' own."""

from __future__ import annotations

import functools

import torch

from segue.laws.oracle import NetworkOracle
from segue.laws.worlds import LENGTHS, VOCABULARY, World, network, timeless
from segue.models.transformers.load import wrap
from segue.models.tuning import TUNINGS

MASK = VOCABULARY - 1
STEPS, RATE = 150, 3e-3


@functools.cache
def tuned(family: str, kind: str) -> World:
    """A tiny network of a family that knows a text by heart, with masks in it as without."""
    net = network(family).train()
    period = [5, 17, 60, 33, 71, 8, 42]
    text = [period[i % len(period)] for i in range(64)]
    ids = torch.tensor([text[i : i + 48] for i in range(len(period))] * 2)
    objective = TUNINGS[kind](mask=MASK)
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimiser.zero_grad()
        torch.autograd.backward(objective.loss(net, ids, torch.ones_like(ids, dtype=torch.bool), generator))
        optimiser.step()
    lm = timeless(wrap(net.eval().requires_grad_(False), name=f"tuned-{family}"))
    lm.tuned = objective.facts()
    return World(lm, NetworkOracle(lm), [text[: LENGTHS[2]]])
