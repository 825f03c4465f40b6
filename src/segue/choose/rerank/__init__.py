"""Reranking: the best of finished candidates."""
