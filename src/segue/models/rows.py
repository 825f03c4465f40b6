"""Does a row's result depend on the rows that are scored with it? Found out by comparing bits."""

from __future__ import annotations

import torch

from segue.data import DraftTree, Want
from segue.models.lm import LM

CHECKED = (2, 3, 8, 13, 24)  # row counts that are compared with single rows
PAST = 8  # rows before them


@torch.no_grad()
def rows_alone(lm: LM, counts: tuple[int, ...] = CHECKED) -> dict[int, bool]:
    """For each row count whether a tree and a chain of so many rows give, bit for bit, what each row gives alone."""
    count = max(counts)
    if lm.context_length <= count + PAST:
        counts, count = tuple(k for k in counts if k < lm.context_length // 2), lm.context_length // 2
    text = [(7 * i * i + 3 * i + 1) % lm.vocab_size for i in range(count + PAST)]
    sequence = lm.sequence()
    (_,) = lm.forward([(sequence, DraftTree.chain(text[:PAST]), Want(logits="none"))])
    sequence.commit(list(range(PAST)))
    mark = sequence.mark()
    alone = []
    for token in text[PAST:]:
        alone.append(lm.forward([(sequence, DraftTree.root(token), Want())])[0].logits[0].clone())
        sequence.commit([0])
    found = {}
    for k in counts:
        sequence.rollback(mark)
        chain = DraftTree.chain(text[PAST : PAST + k])
        tree = DraftTree.from_paths(chain.tokens[0], [[text[0]], chain.tokens[1:], [text[1], text[2]]])
        rows = lm.forward([(sequence, chain, Want())])[0].logits.clone()
        path = _path(tree, chain.tokens)
        branched = lm.forward([(sequence, tree, Want())])[0].logits
        found[k] = all(torch.equal(rows[i], alone[i]) and torch.equal(branched[path[i]], alone[i]) for i in range(k))
    sequence.release()
    return found


def _path(tree: DraftTree, tokens: list[int]) -> list[int]:
    """The nodes that spell `tokens`."""
    children, nodes = tree.children(), [0]
    for token in tokens[1:]:
        nodes.append(next(c for c in children[nodes[-1]] if tree.tokens[c] == token))
    return nodes
