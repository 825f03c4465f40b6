"""Hidden states as transformers gives them, by one forward over a whole text: no cache, no packing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from segue.laws.worlds import World
from segue.models.toy import ToyLM
from segue.models.transformers.lm import TransformersLM

NORMS = ("norm", "ln_f", "final_layer_norm")  # how families call the last one; bart and marian have none


class States:
    """Knows the hidden states of a world's model. An encoder-decoder's are those of its decoder."""

    def __init__(self, world: World) -> None:
        self._lm: Any = world.lm
        if isinstance(world.lm, TransformersLM):
            self._network: Any = copy.deepcopy(world.lm.network)
            for part in self._network.modules():
                if isinstance(part, PreTrainedModel):
                    part.set_attn_implementation("eager")
        elif not isinstance(world.lm, ToyLM):
            raise ValueError(f"{world.lm.name} gives no hidden states")

    @torch.no_grad()
    def after(self, prompt: Sequence[int], output: Sequence[int]) -> tuple[Tensor, ...]:
        """(T, D) per layer: what enters the first, then what each gives, the last one's behind the norm. Of a table all
        are the same: they say which its last tokens were."""
        text = [*(self._lm.start_ids or prompt), *output]
        if isinstance(self._lm, ToyLM):
            return (self._codes(text),) * (self._lm.layers + 1)
        ids = torch.tensor([text], device=self._lm.device)
        if not self._lm.start_ids:
            out = self._network(input_ids=ids, use_cache=False, output_hidden_states=True)
            return tuple(layer[0] for layer in out.hidden_states)
        source = torch.tensor([list(prompt)], device=self._lm.device)
        out = self._network(input_ids=source, decoder_input_ids=ids, use_cache=False, output_hidden_states=True)
        return tuple(layer[0] for layer in out.decoder_hidden_states)

    @torch.no_grad()
    def of_source(self, prompt: Sequence[int]) -> Tensor:
        """(S, D) the last states of an encoder-decoder's encoder."""
        ids = torch.tensor([list(prompt)], device=self._lm.device)
        found: Tensor = self._network.get_encoder()(input_ids=ids).last_hidden_state[0]
        return found

    @torch.no_grad()
    def read_out(self, prompt: Sequence[int], output: Sequence[int], layer: int) -> list[float]:
        """(V,) what the model would give after some output if this layer were its last: its state through the last
        norm and the head. A table's layers compute nothing, but without them its rows are disturbed."""
        state = self.after(prompt, output)[layer][-1]
        if isinstance(self._lm, ToyLM):
            place = int(state.argmax())
            found: list[float] = (self._lm.table[place] + self._lm.disturbance[place]).tolist()
            return found
        body = self._network.get_decoder() if self._lm.start_ids else self._network.base_model
        norm = next((getattr(body, name) for name in NORMS if hasattr(body, name)), None)
        state = state if norm is None else norm(state[None, None])[0, 0]
        config = self._network.config
        if getattr(config, "scale_decoder_outputs", False):  # some of the T5 family
            state = state * config.d_model**-0.5
        logits = self._network.get_output_embeddings()(state)
        logits = logits + getattr(self._network, "final_logits_bias", torch.zeros(1))[0]
        cap = getattr(config, "final_logit_softcapping", None)
        found = (logits if cap is None else cap * torch.tanh(logits / cap)).tolist()
        return found

    def _codes(self, text: list[int]) -> Tensor:
        size, order = self._lm.vocab_size, self._lm.order
        codes = torch.zeros(len(text), size**order, dtype=torch.float64)
        for place in range(len(text)):
            last = ([0] * order + text[: place + 1])[-order:]
            codes[place, sum(token * size**power for power, token in enumerate(reversed(last)))] = 1
        return codes
