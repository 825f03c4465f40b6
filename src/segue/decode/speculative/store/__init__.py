"""Datastores that retrieval drafts from: built once, memory-mapped, read by any number of runs."""
