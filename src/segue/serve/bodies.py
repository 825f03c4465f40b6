"""What requests look like: OpenAI's fields, and Segue's own beside them. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

Number = StrictInt | StrictFloat
Text = StrictStr


class Body(BaseModel):
    """What all bodies share."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StreamOptions(Body):
    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False  # nothing is added to pieces: there is nothing to switch off


class JsonSchema(Body):
    name: Text = "answer"
    description: Text | None = None
    strict: StrictBool | None = None
    schema_: dict[str, Any] | StrictBool = Field(alias="schema", default=True)


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Part(Body):
    type: Literal["text"]
    text: Text


class Prediction(Body):
    type: Literal["content"] = "content"
    content: Text | list[Part]


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    name: Text | None = None  # read, and without a meaning here
    # An answer of OpenAI's client, given back as a turn, brings these along.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class Generation(Body):
    """What completions and chat have in common. Segue's own fields are those of its `Settings` (docs/cli.md)."""

    model: Text
    n: StrictInt = Field(default=1, ge=1)
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: StrictInt | None = Field(default=None, ge=1)
    temperature: Number | None = None
    top_p: Number | None = None
    stop: Text | list[Text] | None = None
    seed: StrictInt | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    user: Text | None = None  # read, and without a meaning here
    # Segue's own
    method: Text | None = None
    method_fields: dict[str, Any] = Field(default_factory=dict)
    profile: Text | None = None
    priority: StrictInt = Field(default=0, ge=-100, le=100)
    deadline: Number | None = Field(default=None, gt=0)
    top_k: StrictInt | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repetition_penalty: Number | None = None
    min_tokens: StrictInt | None = None
    ignore_eos: StrictBool | None = None
    stop_tokens: list[StrictInt] | None = None
    bad_words: list[Text] | None = None
    regex: Text | None = None
    grammar: Text | None = None
    choices: list[Text] | None = Field(default=None, min_length=1)


class CompletionBody(Generation):
    prompt: Text | list[Text] | list[StrictInt] | list[list[StrictInt]]
    best_of: StrictInt | None = Field(default=None, ge=1)
    echo: StrictBool | None = False
    logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    suffix: None = None


class ChatBody(Generation):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1)
    logprobs: StrictBool | None = False
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    store: Literal[False] | None = None
    metadata: dict[str, Text] | None = None
    tools: None = None
    tool_choice: None = None
    parallel_tool_calls: None = None
    functions: None = None
    function_call: None = None


class TokenizeBody(Body):
    model: Text | None = None
    prompt: Text | None = None
    messages: list[Message] | None = None
    add_special_tokens: StrictBool = True


class DetokenizeBody(Body):
    model: Text | None = None
    tokens: list[StrictInt]


class EmbeddingsBody(Body):
    model: Text | None = None
    input: Text | list[Text] | list[StrictInt] | list[list[StrictInt]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(default=None, ge=1)
    user: Text | None = None  # read, and without a meaning here
    # Segue's own
    truncate: StrictBool = False
    deadline: Number | None = Field(default=None, gt=0)


class Document(Body):
    text: Text


class RerankBody(Body):
    model: Text | None = None
    query: Text
    documents: list[Text | Document] = Field(min_length=1)
    top_n: StrictInt | None = Field(default=None, ge=1)
    return_documents: StrictBool = True
    # Segue's own
    truncate: StrictBool = False
    deadline: Number | None = Field(default=None, gt=0)
