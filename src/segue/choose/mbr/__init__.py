"""Minimum Bayes risk: the candidate that agrees most with the others."""
