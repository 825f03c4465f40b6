"""Searches: many hypotheses, of which the best goes on."""
