"""Constraint automata over tokens: closed lists, banned and demanded phrases, verbatim substrings, graphs, and how they
combine. Every one of them says how many tokens its text still needs."""

from __future__ import annotations

from segue.ops.automaton.avoid import Avoid
from segue.ops.automaton.base import Base, Table, permits, within
from segue.ops.automaton.combine import Concatenation, Intersection, Union
from segue.ops.automaton.graph import Graph
from segue.ops.automaton.minimal import Minimal
from segue.ops.automaton.phrases import Phrases
from segue.ops.automaton.substring import Substring
from segue.ops.automaton.trie import Trie

__all__ = [
    "Avoid",
    "Base",
    "Concatenation",
    "Graph",
    "Intersection",
    "Minimal",
    "Phrases",
    "Substring",
    "Table",
    "Trie",
    "Union",
    "permits",
    "within",
]
