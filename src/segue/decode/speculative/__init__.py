"""Draft and verify: the family whose loop is in base.py."""
