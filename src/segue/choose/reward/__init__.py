"""Rewards: text that a scorer of whole texts or segments likes."""
