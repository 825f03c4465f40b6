"""What transformers says of tokens that see each other: masks are given to it, as it takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segue.laws.oracle import NetworkOracle


@torch.no_grad()
def logits_together(oracle: NetworkOracle, before: Sequence[int], block: Sequence[int]) -> Tensor:
    """(n, V) the model's raw logits at the n tokens of a block, which see each other and all tokens before."""
    device = oracle.network.device
    ids = torch.tensor([[*before, *block]], device=device)
    places = torch.arange(ids.shape[1])
    inside = places >= len(before)
    seen = (places[:, None] >= places) | (inside[:, None] & inside)
    config = oracle.network.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    near = seen & (places[:, None] - places < window) if window else seen
    masks = {}
    for name, visible in (("full_attention", seen), ("sliding_attention", near)):
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        masks[name] = mask[None, None].to(device)
    mixed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    given = masks if mixed else masks["full_attention"]
    out = oracle.network(input_ids=ids, attention_mask=given, position_ids=places[None], use_cache=False)
    rows: Tensor = out.logits[0, len(before) :]
    return rows
