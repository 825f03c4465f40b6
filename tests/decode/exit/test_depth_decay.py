from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from segue.data import Settings
from segue.decode.exit.depth_decay import DepthDecay
from segue.laws.base import decode
from segue.laws.same_tokens import same_tokens
from segue.laws.worlds import FAMILIES, network_world
from segue.models.lm import LM
from tests.decode.speculative.test_clasp import LAYERS, TEXT, deep

__all__ = ["deep"]


def ran(lm: LM, method: DepthDecay, tokens: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """The answer, and the layers of every forward behind the prompt's."""
    seen: list[tuple[int, ...]] = []
    forward = lm.forward

    def listening(asks: Any) -> Any:
        if len(asks[0][0]):
            seen.append(tuple(range(LAYERS)) if asks[0][2].layers is None else asks[0][2].layers)
        return forward(asks)

    lm.forward = listening  # type: ignore[method-assign]
    try:
        (answer,) = decode(lm, method, [TEXT], Settings(max_tokens=tokens))
    finally:
        lm.forward = forward  # type: ignore[method-assign]
    return answer.tokens, seen


@pytest.mark.parametrize("alpha", [1.0, 0.97, 0.9, 0.6])
def test_token_number_i_runs_its_share_of_layers(deep: LM, alpha: float) -> None:
    _, seen = ran(deep, DepthDecay(alpha=alpha, start_layer=1, n_min=2), 25)
    counts = [len(layers) for layers in seen]
    assert counts == [max(2, int(LAYERS * alpha**i + 1e-9)) for i in range(1, 25)]
    for earlier, later in itertools.pairwise(seen):
        assert set(later) <= set(earlier)
        assert {0, LAYERS - 1} <= set(later)


def test_a_layer_sees_only_tokens_that_ran_it(deep: LM) -> None:
    """Against a forward without a cache in which every layer masks out the tokens that skipped it."""
    method = DepthDecay(alpha=0.85, start_layer=2)
    tokens, seen = ran(deep, method, 16)
    text = [*TEXT, *tokens[:-1]]
    everything = tuple(range(LAYERS))
    layers_of = [everything] * len(TEXT) + seen
    logits = masked(deep, text, layers_of)
    assert logits[len(TEXT) - 1 :].argmax(-1).tolist() == tokens


def masked(lm: Any, text: list[int], layers_of: list[tuple[int, ...]]) -> torch.Tensor:
    network = lm.network
    inner = network.model
    n = len(text)
    network.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            hidden = inner.embed_tokens(torch.tensor([text]))
            positions = torch.arange(n)[None]
            turns = inner.rotary_emb(hidden, position_ids=positions)
            for number, layer in enumerate(inner.layers):
                there = torch.tensor([number in layers for layers in layers_of])
                visible = torch.ones(n, n, dtype=torch.bool).tril() & there[None, :]
                visible |= torch.eye(n, dtype=torch.bool)
                mask = torch.zeros(1, 1, n, n).masked_fill(~visible, torch.finfo(torch.float32).min)
                out = layer(hidden, attention_mask=mask, position_embeddings=turns, position_ids=positions)
                out = out[0] if isinstance(out, tuple) else out
                hidden = torch.where(there[None, :, None], out, hidden)
            logits: torch.Tensor = network.lm_head(inner.norm(hidden))[0]
            return logits
    finally:
        network.set_attn_implementation("segue")


def test_the_less_depth_the_less_likely_the_text() -> None:
    """What decays costs: mean log-probability that the embedded model gives the answers."""
    import segue

    model = segue.model(dtype="float32")
    prompts = ["User: What is a good name for a cat?\nAssistant:", "Once upon a time there was", "The king said"]
    means = []
    for alpha in (1.0, 0.97, 0.9):
        logp, count = 0.0, 0
        for prompt in prompts:
            out = model.generate(prompt, DepthDecay(alpha=alpha), max_tokens=32, ignore_eos=True)
            again = model.encode(prompt) + out.tokens
            rows = _rows(model.lm, again)[-len(out.tokens) - 1 : -1].log_softmax(-1)
            logp += float(rows[range(len(out.tokens)), out.tokens].sum())
            count += len(out.tokens)
        means.append(logp / count)
    print(f"log-probability per token at alpha 1, 0.97, 0.9: {means}")
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 0.5


def _rows(lm: LM, text: list[int]) -> torch.Tensor:
    from segue.data import DraftTree, Want

    (scores,) = lm.forward([(lm.sequence(), DraftTree.chain(text), Want())])
    return scores.logits.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_as_a_draft_it_is_lossless(family: str) -> None:
    world = network_world(family)
    method = DepthDecay(alpha=0.8, gamma=3, start_layer=0, n_min=1)
    report = same_tokens(method, world.lm, world.oracle, world.prompts, Settings(max_tokens=20))
    assert report.tokens > 120
    assert not report.near_ties


def test_as_a_draft_it_drafts_at_the_depth_of_its_place(deep: LM) -> None:
    method = DepthDecay(alpha=0.9, gamma=3)
    tokens, seen = ran(deep, method, 20)
    plain, _ = ran(deep, DepthDecay(alpha=1.0), 20)
    assert tokens == plain
    drafts = [layers for layers in seen if len(layers) < LAYERS]
    assert drafts
    assert min(map(len, drafts)) == max(2, int(LAYERS * 0.9**19))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 is not allowed"),
        ({"alpha": 1.1}, "alpha=1.1 is not allowed"),
        ({"n_min": 0}, "n_min=0 is not allowed: at least 1"),
        ({"start_layer": -1}, "start_layer=-1 is not allowed: at least 0"),
        ({"gamma": -1}, "gamma=-1 is not allowed: at least 0"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthDecay(**fields)
