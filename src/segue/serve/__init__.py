"""The server: an API that OpenAI's clients speak, on one engine for all users."""
