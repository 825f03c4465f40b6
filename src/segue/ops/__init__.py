"""Pure tensor functions: they know nothing about models."""
