"""Rows of one sequence in llama.cpp's cache, which is one pool of cells for all of them.

A cell knows its position and the set of sequences it belongs to. A sequence of ours is one number there, and while a
tree is scored each further leaf is one more: it shares the past by copies that only touch those sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import llama_cpp
from torch import Tensor

from segue.data import CapabilityError, DraftTree
from segue.models.llamacpp.names import LEAVES


class Numbers:
    """The sequence numbers of one context: few, so they are lent and given back."""

    def __init__(self, memory: Any, count: int) -> None:
        self.memory = memory
        self.count = count
        self._free = list(range(count))[::-1]

    @property
    def spare(self) -> int:
        return len(self._free)

    def take(self) -> int:
        if not self._free:
            raise CapabilityError(
                f"llama.cpp keeps at most {self.count} sequences at a time, and all are in use: run fewer requests at "
                "once, or draft narrower trees"
            )
        return self._free.pop()

    def give_back(self, number: int) -> None:
        self.keep_until(number, 0)
        self._free.append(number)

    def keep_until(self, number: int, position: int) -> None:
        """Forget the rows of a sequence from a position on."""
        llama_cpp.llama_memory_seq_rm(self.memory, number, position, -1)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let rows [start, end) of one sequence belong to another as well; no data moves."""
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, start, end)


class LlamaPast:
    """What llama.cpp keeps for one sequence, and the tree that lies on top of it until commit."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._number: int | None = None  # taken when the first rows come, so that waiting requests hold none
        self.length = 0
        self.leaves: list[tuple[int, int]] = []  # of the provisional tree: leaf node, its sequence number
        self._parents: list[int] = []

    @property
    def number(self) -> int:
        if self._number is None:
            self._number = self._numbers.take()
        return self._number

    def lay(self, tree: DraftTree) -> list[list[int]]:
        """Make room for a tree on top of the past; gives the sequence numbers of every node. Rows of a tree that was
        never committed are dropped."""
        self.drop()
        if tree.together:
            raise CapabilityError("llama.cpp cannot let nodes of a tree see each other: load with backend transformers")
        if tree.is_chain:
            self.leaves = [(len(tree) - 1, self.number)]
            self._parents = tree.parents
            return [[self.number]] * len(tree)
        if len(tree.leaves()) > LEAVES:
            raise CapabilityError(f"llama.cpp takes trees of {LEAVES} leaves, and this one has {len(tree.leaves())}")
        owners: list[list[int]] = [[] for _ in range(len(tree))]
        for place, tip in enumerate(tree.leaves()):
            number = self.number if place == 0 else self._numbers.take()
            self.leaves.append((tip, number))
            if place:
                self._numbers.copy(self.number, number, 0, self.length)
            for node in tree.path(tip):
                owners[node].append(number)
        self._parents = tree.parents
        return owners

    def commit(self, path: list[int]) -> None:
        last, end = path[-1], self.length + len(path)
        number = next(n for tip, n in self.leaves if self._leads(tip, last))
        if number != self.number:
            self._numbers.keep_until(self.number, self.length)
            self._numbers.copy(number, self.number, self.length, end)
        self.length = end
        self.drop()

    def _leads(self, tip: int, node: int) -> bool:
        """Whether `node` lies on the path to a leaf."""
        while tip > node:
            tip = self._parents[tip]
        return tip == node

    def drop(self) -> None:
        """Forget everything provisional."""
        if not self.leaves:
            return
        for _, number in self.leaves:
            if number != self.number:
                self._numbers.give_back(number)
        self._numbers.keep_until(self.number, self.length)
        self.leaves = []

    def truncate(self, length: int) -> None:
        self.drop()
        if length < self.length:
            self._numbers.keep_until(self.number, length)
            self.length = length

    def reopen(self, length: int) -> None:
        raise CapabilityError("llama.cpp runs all layers at once: none can be left for later")

    def fork(self) -> LlamaPast:
        self.drop()
        other = LlamaPast(self._numbers)
        if self.length:
            self._numbers.copy(self.number, other.number, 0, self.length)
            other.length = self.length
        return other

    def copy(self, length: int, still: bool = False) -> LlamaPast:
        other = self.fork()
        other.truncate(length)
        return other

    def view(self, kept: Mapping[int, Tensor], turn: Any = None) -> LlamaPast:
        raise CapabilityError(
            "llama.cpp does not show its cache: load the transformers checkpoint for methods that draft "
            "from a part of it"
        )

    def follow(self, other: Any, start: int, stop: int) -> None:
        raise CapabilityError("llama.cpp has no views of a cache that could follow it")

    def release(self) -> None:
        """Forget all rows and give the number back; the sequence can start again."""
        self.drop()
        if self._number is not None:
            self._numbers.give_back(self._number)
            self._number = None
        self.length = 0

    def __del__(self) -> None:
        if hasattr(self, "leaves"):
            self.release()
