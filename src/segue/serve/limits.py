"""What a server grants to one request and to all of them together."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Set by the operator; a request beyond them is refused with a clear error."""

    max_queue: int = 128  # requests that wait for the engine; further ones get 429
    max_prompt_tokens: int = 8192  # tokens of a prompt
    max_new_tokens: int = 4096  # that a request may ask for
    max_body_bytes: int = 2_000_000  # of a request
    max_inputs: int = 2048  # texts of one request for embeddings, documents of one for reranking
    max_text_chars: int = 100_000  # of one text for an encoder, cut or not: one text is one turn of its thread
    max_choices: int = 64  # answers of one request: prompts times best_of
    max_words: int = 1024  # strings in stop or bad_words: each is spelled and looked for beside the forwards
    max_grammar_bytes: int = 32_768  # of a schema, regular expression or grammar
    max_field: int = 256  # largest whole number in a method's field
    timeout: float = 600.0  # seconds that a request may take, waiting included
    drain: float = 30.0  # seconds that open requests are given after SIGTERM

    def seconds(self, deadline: float | None) -> float:
        """That a request with this deadline of its own may take."""
        return self.timeout if deadline is None else min(self.timeout, deadline)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value} is not allowed: above 0")
