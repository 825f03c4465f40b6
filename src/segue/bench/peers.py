"""transformers' own decoding as contestants: greedy, prompt lookup, and a draft model as its assistant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from segue.bench.contest import Row
from segue.data import Settings, Stats
from segue.models.source import EMBEDDED

GREEDY, LOOKUP, ASSISTANT = "transformers", "transformers prompt lookup", "transformers assistant"
LOOKUP_TOKENS = 10


@dataclass
class Transformers:
    """`generate` of the untouched network, in the precision of ours."""

    name: str
    network: Any
    options: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        ids = torch.tensor([prompt], device=self.network.device)
        how: dict[str, Any] = {"do_sample": False}
        if settings.temperature:
            how = {"do_sample": True, "temperature": settings.temperature, "top_k": 0}
        if settings.ignore_eos:
            how["min_new_tokens"] = settings.max_tokens
        end = self.network.generation_config.eos_token_id
        out = self.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.max_tokens,
            pad_token_id=end[0] if isinstance(end, list) else end or 0,
            **how,
            **self.options,
        )
        first = 1 if self.network.config.is_encoder_decoder else len(prompt)  # a start token, or the prompt
        return [int(t) for t in out[0, first:]], None

    def forget(self) -> None:
        pass


def transformers_peers(source: str, dtype: torch.dtype, device: torch.device, draft: str | None) -> list[Transformers]:
    """The baseline first. Without a draft model there is no assistant."""

    def bare(path: str) -> Any:
        place = str(EMBEDDED / path) if (EMBEDDED / path).is_dir() else path
        pair = AutoConfig.from_pretrained(place).is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
        return kind.from_pretrained(place, dtype=dtype).to(device).eval()

    network = bare(source)
    peers = [
        Transformers(GREEDY, network),
        Transformers(LOOKUP, network, {"prompt_lookup_num_tokens": LOOKUP_TOKENS}),
    ]
    if draft is not None:
        peers.append(Transformers(ASSISTANT, network, {"assistant_model": bare(draft)}))
    return peers


@torch.no_grad()
def margins(network: Any, prompts: list[list[int]], rows: list[Row]) -> dict[str, list[float]]:
    """How close the calls were: at the first token that differs from the baseline's, the logit of the baseline's token
    minus the other's, scored by the bare network on the text up to there."""
    found: dict[str, list[float]] = {}
    for row in rows[1:]:
        for prompt, ours, theirs in zip(prompts, row.tokens, rows[0].tokens, strict=True):
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if at is not None:
                if network.config.is_encoder_decoder:
                    start = network.generation_config.decoder_start_token_id
                    texts = {"input_ids": prompt, "decoder_input_ids": [start, *theirs[:at]]}
                else:
                    texts = {"input_ids": [*prompt, *theirs[:at]]}
                ids = {name: torch.tensor([text], device=network.device) for name, text in texts.items()}
                logits = network(**ids).logits[0, -1].float()
                found.setdefault(row.name, []).append(float(logits[theirs[at]] - logits[ours[at]]))
    return found
