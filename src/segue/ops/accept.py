"""Which proposed tokens stay: one recursion over a node's children in draw order.

For every node: p is the target's distribution after it. A *sampled* child t, drawn from q, is accepted iff
u * q[t] < p[t], else p <- norm(max(0, p - q)) (and, drawn without replacement, q[t] <- 0, q <- norm(q)). A *delta*
child t is accepted with probability p[t], else p[t] <- 0 and p is renormalised. If no child is accepted the next token
is drawn from what is left of p. Greedy decoding is the same with a one-hot p.

Where all children are delta, that rule is one draw from p: the child that was drawn is accepted, and without one the
draw is the next token. Each token then takes one uniform number, as in plain decoding, so that a seed gives the same
text whatever was drafted.
Sources: Leviathan et al. 2023, alg. 1 (arXiv:2211.17192); recursive rejection, Jeon et al. 2024 (arXiv:2402.14160).
"""

from __future__ import annotations

import torch
from torch import Tensor

from segue.data import Distribution, DraftTree
from segue.ops.chance import Chance


def accept_greedy(tree: DraftTree, argmax: list[int]) -> tuple[list[int], int]:
    """The path that greedy decoding would take and the token after it; `argmax` has one entry per node."""
    path = [0]
    children = tree.children()
    while True:
        token = argmax[path[-1]]
        match = next((c for c in children[path[-1]] if tree.tokens[c] == token), None)
        if match is None:
            return path, token
        path.append(match)


def accept(
    tree: DraftTree, p_after: Distribution, chance: Chance, lenience: float = 1.0
) -> tuple[list[int], int | None]:
    """The accepted nodes from the root on, and the token that follows them; None where the path leads to a node after
    which p is not known yet.

    `lenience` in (0, 1] multiplies q in the test of a sampled child (Leviathan et al., A.5): below 1 more is kept, and
    the result only approximates p.
    """
    path = [0]
    children = tree.children()
    while True:
        node = path[-1]
        p = p_after(node)
        if p is None:
            return path, None
        q = tree.q.get(node)
        if not any(tree.sampled[child] for child in children[node]):
            token = chance.index(p)
            match = next((child for child in children[node] if tree.tokens[child] == token), None)
            if match is None:
                return path, token
            path.append(match)
            continue
        for child in children[node]:
            token = tree.tokens[child]
            if not tree.sampled[child]:
                if chance.keeps(float(p[token]), 1.0):
                    break
                p = without(p, token)
                continue
            if q is None:
                raise ValueError(f"node {child} is marked sampled, but the row it was drawn from is not in the tree")
            if chance.keeps(float(p[token]), lenience * float(q[token])):
                break
            p = residual(p, q)
            if not tree.replacement:
                q = without(q, token)
        else:
            return path, chance.index(p)
        path.append(child)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(0, p - q)) (V,); p itself where nothing is left (then p equals q and a rejection was rounding)."""
    rest = (p - q).clamp_(min=0)
    total = rest.sum()
    return rest / total if float(total) > 0 else p


def without(p: Tensor, token: int) -> Tensor:
    """p (V,) with one token removed and the rest renormalised; p itself where nothing is left."""
    rest = p.clone()
    rest[token] = 0
    total = rest.sum()
    return rest / total if float(total) > 0 else p


def one_hot(token: int, size: int, device: torch.device) -> Tensor:
    """(V,) all mass on one token: greedy decoding as a distribution."""
    p = torch.zeros(size, device=device)
    p[token] = 1.0
    return p
