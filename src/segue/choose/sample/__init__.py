"""Samplers: the next token from another distribution than the model's."""
