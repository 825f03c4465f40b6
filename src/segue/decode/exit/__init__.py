"""Decoding with fewer layers where a token does not need them all."""
