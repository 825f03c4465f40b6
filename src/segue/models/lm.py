"""What a language model is to the rest of the house: it scores token trees of many sequences in one forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from segue.data import CapabilityError, DraftTree, Scores, Settings, Want
from segue.models.cost import FLAT, Cost
from segue.models.sequence import Sequence

Ask = tuple[Sequence, DraftTree, Want]


class LM(ABC):
    """A language model: a transformers model, a GGUF file run by llama.cpp, or an enumerable toy. Of an encoder-decoder
    the sequences are the decoder's, and the prompt is what its encoder reads."""

    name: str
    backend: str  # who runs it, e.g. "transformers"
    precision: str  # of its weights, e.g. "bfloat16", "int8", "q8_0"
    vocab_size: int
    context_length: int
    eos_ids: frozenset[int]
    layers: int  # decoder layers that `Want.layers` may choose from
    tied: bool = False  # the head is the embeddings' own matrix
    device: torch.device = torch.device("cpu")
    tokenizer: Any = None  # a transformers tokenizer, or None: then prompts are token ids
    identity: str = ""  # of its weights, where they can be told apart: what is trained beside it is bound to them
    width: int = 0  # of its hidden states
    dtype: torch.dtype = torch.float32  # of its hidden states
    weight_bytes: int = 0
    bytes_per_row: int = 0  # cache memory of one token
    kv_rows: int | None = None  # cache rows that all its sequences share; None where memory is the only limit
    most_leaves: int | None = None  # leaves that one tree may have; None for any number
    most_sequences: int | None = None  # that the requests which are open may hold together
    lacking: frozenset[str] = frozenset()  # what its forwards do not give, in the words of `Want.needs` and of cards
    start_ids: tuple[int, ...] = ()  # an encoder-decoder writes on from these; elsewhere text goes on from the prompt
    threads: int = 0  # that all its forwards run on; 0 leaves that to what was measured, or to the process

    def __init__(self) -> None:
        self.stores: dict[str, Any] = {}  # what drafters keep between requests, by method name
        self.companions: dict[str, LM] = {}  # draft models loaded for this one, by path
        self.tuned: dict[str, Any] = {}  # what it was tuned for, if for a method of its own
        self.trained: dict[str, Any] = {}  # networks that draft from its hidden states, by kind and folder
        self.compiled: OrderedDict[Any, Any] = OrderedDict()  # grammars made ready for its tokens

    @property
    def bytes_per_token(self) -> int:
        """Weight bytes that one token reads."""
        return self.weight_bytes

    @property
    def cost(self) -> Cost:
        """What a forward costs by the number of its rows."""
        return FLAT

    def threads_for(self, rows: int) -> int:
        """Threads of a forward with that many rows: as measured, once it was; 0 leaves the process as it is."""
        known: Cost | None = vars(self).get("cost")
        return self.threads or (known.threads_for(rows) if known is not None else 0)

    def thread_choices(self) -> tuple[int, ...]:
        """Thread counts that its forwards may run on, ascending."""
        return (self.threads,)

    def companion_options(self, path: str) -> dict[str, Any]:
        """How a draft model at `path` is best loaded beside this one."""
        return {}

    @property
    def branches(self) -> int | None:
        """Further branches (leaves beyond the first) that the trees of a forward may have now; None for any number."""
        return None

    def facts(self) -> dict[str, Any]:
        """What the cost of a forward depends on, besides name, backend, precision and threads."""
        return {}

    @property
    def windowed(self) -> frozenset[int]:
        """Layers that see a window of rows only: a view keeps all rows of these."""
        return frozenset()

    def kv_heads(self, layer: int) -> int:
        """Heads of a layer's keys and values."""
        return 1

    def refusal(self, method: str, needs: Iterable[str]) -> str:
        """Why a method that needs all this cannot run here, or nothing."""
        missing = [need for need in needs if need in self.lacking]
        if not missing:
            return ""
        return (
            f"{method} needs {' and '.join(missing)}, which {self.backend} does not give ({self.name}): load the "
            "checkpoint with backend transformers, or choose a method that needs less"
        )

    def turn(self) -> Any:
        """How cached keys are moved to other positions (models/transformers/turn.py)."""
        raise CapabilityError(f"{self.name} runs in {self.backend}, which cannot move what it has read")

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., D) rows of its input table for tokens (...), as they are stored."""
        raise CapabilityError(f"{self.name} runs in {self.backend}, which does not show its embeddings")

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """(..., V) products of states (..., D) behind the last norm with its vocabulary."""
        raise CapabilityError(f"{self.name} runs in {self.backend}, which does not show its head")

    @abstractmethod
    def sequence(self) -> Sequence:
        """A new, empty sequence."""

    def reading(self, source: Seq[int]) -> Sequence:
        """A new, empty sequence over a source, which an encoder-decoder reads beside the tokens of its own text. Other
        models have no source."""
        if source:
            raise ValueError(f"{self.name} has no encoder: it cannot write from a source of {len(source)} tokens")
        return self.sequence()

    def source_states(self, source: Seq[int]) -> Tensor:
        """(S, D) what the encoder of an encoder-decoder makes of the tokens of a source."""
        raise ValueError(f"{self.name} has no encoder: it cannot read a source of {len(source)} tokens")

    @abstractmethod
    def forward(self, asks: Seq[Ask]) -> list[Scores]:
        """Score the trees of several sequences at once. Their rows stay provisional until each sequence commits."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a prompt, with the special tokens its tokenizer puts in front unless the text has its own."""
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer: give the prompt as a list of token ids")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not Unicode: half a surrogate pair at character {error.start}") from None
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return [int(i) for i in ids]

    def decode(self, tokens: Seq[int]) -> str:
        if self.tokenizer is None:
            return ""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def constraints(self, settings: Settings, source: Seq[int], length: int) -> list[Any]:
        """transformers' processors that the model itself asks for, beside the settings of a request, in a text of at
        most `length` tokens."""
        return []

    def reset_stores(self) -> None:
        """Forget what drafters learned from earlier requests."""
        self.stores.clear()

    def longest_prompt(self, new: int) -> int:
        """Tokens that a prompt may have where `new` ones are to follow it."""
        return self.context_length - new - 1

    def check_prompt(self, tokens: Seq[int]) -> None:
        """Raise ValueError where a prompt cannot be run."""
        if len(tokens) == 0:
            raise ValueError("the prompt is empty: give at least one token (the begin-of-text id starts from nothing)")
        self.check_vocabulary(tokens)
        if len(tokens) >= self.context_length:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens, but {self.name} has a context of {self.context_length}: "
                "shorten the prompt or use a model with a longer context"
            )

    def check_vocabulary(self, tokens: Seq[int]) -> None:
        """Raise ValueError where an id is none of this model's."""
        bad = next((t for t in tokens if not 0 <= t < self.vocab_size), None)
        if bad is not None:
            raise ValueError(f"token id {bad} is outside the vocabulary of {self.name} (0 to {self.vocab_size - 1})")
