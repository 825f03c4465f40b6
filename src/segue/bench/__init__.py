"""Measuring methods side by side, against transformers, on real prompts."""
