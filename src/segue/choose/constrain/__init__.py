"""Constraints: only what an automaton, an index or a document allows."""
