"""Decoding by guessing many positions at once and refining the guesses until they are the model's own text."""
