"""A conversation as a prompt: by the tokenizer's chat template, or in the plain form where it has none.

The plain form is the one the embedded models were trained on, with the answer ended by the next "User:":

    User: Hello?
    Assistant: Hello.
    User: How are you?
    Assistant:
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segue.data import Settings
    from segue.models.lm import LM

Message = Mapping[str, str]  # "role" and "content"
SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "system": ""}  # a system message stands in front as it is
STOP = "\nUser:"


@dataclass(frozen=True)
class Form:
    """How a model wants conversations."""

    lm: LM

    @property
    def template(self) -> bool:
        return getattr(self.lm.tokenizer, "chat_template", None) is not None

    def ends(self, settings: Settings) -> dict[str, Any]:
        """What to change in the settings so that an answer ends where the speaker changes."""
        if not self.template:  # what is constrained ends by itself, and must not be cut
            return {} if settings.constrained else {"stop": (*settings.stop, STOP)}
        end = self.lm.tokenizer.eos_token_id
        # Some checkpoints end a turn with a token that only their tokenizer calls the end.
        return {} if end is None else {"stop_tokens": (*settings.stop_tokens, end)}

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation up to where the assistant's next answer starts."""
        if self.lm.tokenizer is None:
            raise ValueError(f"{self.lm.name} has no tokenizer, so it takes no messages: give token ids as the prompt")
        if not self.template:
            lines = [SPEAKERS[message["role"]] + message["content"] for message in messages]
            return self.lm.encode("\n".join([*lines, "Assistant:"]))
        from jinja2 import TemplateError  # there whenever a template is: transformers renders with it

        try:
            text = self.lm.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ValueError(f"the chat template of {self.lm.name} refuses these messages: {error}") from None
        return self.lm.encode(text, special=False)

    def first(self, text: str) -> str:
        """The first piece of an answer, without what stands before it in the plain form."""
        return text if self.template else text.lstrip()

    def answer(self, text: str) -> str:
        """The answer as a message; the plain form puts a space before it that is not part of it."""
        return text if self.template else text.strip()


def check(messages: Any) -> list[Message]:
    """Messages from outside; ValueError says what is wrong with them."""
    if not isinstance(messages, list) or not messages:
        raise ValueError('messages must be a list of {"role": ..., "content": ...}')
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f'{message!r} is no message: it has "role" and "content"')
        if message["role"] not in SPEAKERS:
            raise ValueError(f"role {message['role']!r} is unknown: there are {', '.join(SPEAKERS)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"content {message['content']!r} is not text")
    return messages
