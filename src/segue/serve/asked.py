"""From a body to what the engine is asked: prompts as tokens, settings, a method. Runs beside the server's own loop, as
long prompts and large grammars take time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segue.api import Model, Request, make_settings
from segue.models.constraint import prepare
from segue.models.conversation import Form
from segue.models.method import Method
from segue.serve import bodies
from segue.serve.choosing import Choosing
from segue.serve.faults import Fault, refused
from segue.serve.prediction import Prediction

SAME_NAMES = (
    "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "typical_p",
    "repetition_penalty", "min_tokens", "ignore_eos", "bad_words", "stop_tokens", "stop", "regex", "grammar",
    "choices",
)  # fmt: skip
COMPLETION_TOKENS = 16  # OpenAI's default


@dataclass(frozen=True)
class Asked:
    """A request that can be queued."""

    requests: list[Request]
    n: int  # answers given
    best_of: int  # answers made, of each prompt
    echo: list[str]  # the prompts' texts where they are to be given again
    show_logprobs: bool
    form: Form | None = None  # of a chat


def completion(body: bodies.CompletionBody, model: Model, choosing: Choosing) -> Asked:
    """What a body of /v1/completions asks for."""
    prompts = _prompts(body.prompt)
    best_of = body.n if body.best_of is None else body.best_of
    if best_of < body.n:
        raise Fault(400, f"best_of={best_of} is less than n={body.n}", param="best_of")
    if body.stream and best_of > body.n:
        raise Fault(400, "best_of above n cannot be streamed: the best is known at the end", param="best_of")
    scored = bool(body.echo) and body.logprobs is not None
    if scored and (best_of > 1 or body.stream):
        raise Fault(400, "echo with logprobs scores the prompt: leave out n, best_of and stream", param="echo")
    _grant("n", best_of * len(prompts), choosing.limits.max_choices, "answers")
    logprobs = body.logprobs if best_of == body.n else body.logprobs or 0
    values = _settings(body, model, choosing, body.max_tokens or COMPLETION_TOKENS, logprobs)
    ids = [_read(model, prompt, choosing) for prompt in prompts]
    requests = _requests(body, ids, values, model, choosing, None, scored)
    echo = [p if isinstance(p, str) else model.lm.decode(p) for p in prompts] if body.echo else []
    return Asked(requests, body.n, best_of, echo, body.logprobs is not None)


def chat(body: bodies.ChatBody, model: Model, choosing: Choosing) -> Asked:
    """What a body of /v1/chat/completions asks for."""
    if body.top_logprobs is not None and not body.logprobs:
        raise Fault(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    _grant("n", body.n, choosing.limits.max_choices, "answers")
    form = Form(model.lm)
    ids = _fits(chat_ids(body.messages, form), choosing)
    room = max(model.lm.context_length - len(ids), 1)
    most = body.max_completion_tokens or body.max_tokens or min(choosing.limits.max_new_tokens, room)
    values = _settings(body, model, choosing, most, (body.top_logprobs or 0) if body.logprobs else None)
    try:
        values |= form.ends(make_settings(**values))
    except ValueError as error:
        raise refused(error) from None
    return Asked(_requests(body, [ids], values, model, choosing, form), body.n, body.n, [], bool(body.logprobs), form)


def chat_ids(messages: Sequence[bodies.Message], form: Form) -> list[int]:
    """Tokens of a conversation."""
    turns = [{"role": "system" if m.role == "developer" else m.role, "content": text_of(m.content)} for m in messages]
    try:
        return form.encode(turns)
    except ValueError as error:
        raise refused(error, "messages") from None


def constrained(body: bodies.Generation) -> bool:
    """Whether something has to be compiled for a body."""
    form = body.response_format
    stated = (body.regex, body.grammar, body.choices)
    return any(value is not None for value in stated) or (form is not None and form.type != "text")


def text_of(content: str | list[bodies.Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _prompts(given: Any) -> list[str | list[int]]:
    many = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    prompts: list[str | list[int]] = given if many else [given]
    return prompts


def _read(model: Model, prompt: str | list[int], choosing: Choosing) -> list[int]:
    try:
        return _fits(model.encode(prompt), choosing)
    except ValueError as error:
        raise refused(error, "prompt") from None


def _fits(ids: list[int], choosing: Choosing) -> list[int]:
    _grant("prompt", len(ids), choosing.limits.max_prompt_tokens, "tokens of a prompt")
    return ids


def _grant(param: str, given: int, most: int, what: str) -> None:
    if given > most:
        raise Fault(400, f"{given} {what} are more than this server grants: at most {most}", param=param)


def _settings(
    body: bodies.Generation, model: Model, choosing: Choosing, max_tokens: int, logprobs: int | None
) -> dict[str, Any]:
    """The fields of `Settings` that a body gives."""
    _grant("max_tokens", max_tokens, choosing.limits.max_new_tokens, "new tokens")
    values: dict[str, Any] = {"max_tokens": max_tokens, "logprobs": logprobs}
    values["temperature"] = 1.0 if body.temperature is None else body.temperature
    values |= {name: value for name in SAME_NAMES if (value := getattr(body, name)) is not None}
    for name in ("stop", "bad_words"):
        if isinstance(given := values.get(name), list):
            _grant(name, len(given), choosing.limits.max_words, f"strings in {name}")
    if body.logit_bias:
        values["logit_bias"] = body.logit_bias
    form = body.response_format
    if form is not None and form.type == "json_object":
        values["json_schema"] = {"type": "object"}
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise Fault(400, "response_format json_schema needs its json_schema", param="response_format")
        values["json_schema"] = form.json_schema.schema_
    for name in ("json_schema", "regex", "grammar", "choices"):
        if name in values:
            value = values[name]
            try:
                size = len((value if isinstance(value, str) else json.dumps(value)).encode(errors="replace"))
            except RecursionError:
                raise Fault(400, f"{name} is nested too deeply to be followed", param=name) from None
            _grant(name, size, choosing.limits.max_grammar_bytes, f"bytes of {name}")
    return values


def _requests(
    body: bodies.Generation,
    prompts: list[list[int]],
    values: dict[str, Any],
    model: Model,
    choosing: Choosing,
    form: Form | None,
    scored: bool = False,
) -> list[Request]:
    method = _method(body, model, choosing, form)
    try:
        for ids in prompts:
            model.lm.check_prompt(ids)
    except ValueError as error:
        raise refused(error, "messages" if form is not None else "prompt") from None
    try:
        settings = make_settings(**values)
        prepare(settings, model.lm)
    except ValueError as error:
        raise refused(error) from None
    return [Request(ids, method, settings, scored) for ids in prompts]


def _method(body: bodies.Generation, model: Model, choosing: Choosing, form: Form | None) -> Method:
    if body.prediction is None:
        return choosing.choose(body.method, body.method_fields, body.profile)
    if body.method is not None or body.method_fields or body.profile is not None:
        raise Fault(400, "prediction is a method of its own: leave method, method_fields and profile out")
    text = text_of(body.prediction.content)
    if form is not None and not form.template:
        text = " " + text  # the plain form writes a space before an answer
    try:
        ids = model.lm.encode(text, special=False) if text else []
    except ValueError as error:
        raise refused(error, "prediction") from None
    _fits(ids, choosing)
    return Prediction(tokens=tuple(ids))
