from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from segue.data import CapabilityError, DraftTree, Settings, Want
from segue.decode.speculative.specextend import Specextend, best_chunks
from segue.laws.base import decode
from segue.laws.same_tokens import same_tokens
from segue.laws.worlds import FAMILIES, neighbour, network_world
from segue.models.lm import LM
from segue.models.transformers.load import wrap
from tests.models.families import twins

SMALL: dict[str, Any] = {"chunk": 4, "chunks": 2, "every": 2, "gain": 0.0, "depth": 4, "width": 3, "nodes": 8}


def random_network(seed: int, spread: float = 1.0) -> LM:
    """A random network with room for long texts."""
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=None,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 2:
                weight.mul_(spread)
    return wrap(network, name=f"long-{seed}")


@pytest.fixture(scope="module")
def long() -> LM:
    return random_network(4)


def words(count: int, seed: int = 0, vocabulary: int = 60) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocabulary) for _ in range(count)]


@pytest.mark.parametrize("chunk", [3, 8])
def test_the_chosen_chunks_are_a_top_k_of_eager_attention(chunk: int) -> None:
    pair = twins("llama")
    text = words(61, 1, pair.lm.vocab_size)
    with torch.no_grad():
        seen = pair.oracle(torch.tensor([text]), use_cache=False, output_attentions=True).attentions[-1]
    row = seen[0, :, -1, :-1].numpy().mean(0)
    whole = len(row) // chunk
    means = row[: whole * chunk].reshape(whole, chunk).mean(1)
    expected = sorted(np.argsort(-means, kind="stable")[:4].tolist())
    sequence = pair.lm.sequence()
    pair.lm.forward([(sequence, DraftTree.chain(text[:-1]), Want(logits="none"))])
    sequence.commit(list(range(len(text) - 1)))
    (scores,) = pair.lm.forward([(sequence, DraftTree.root(text[-1]), Want(attention=((-1,), None)))])
    (weights,) = scores.attention.values()
    assert best_chunks(weights[:, 0, : len(text) - 1], chunk, 4) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("renumber", ["auto", "off"])
def test_a_small_working_cache_changes_no_token(family: str, renumber: str) -> None:
    world = network_world(family)
    method = Specextend(draft=neighbour(world.lm), renumber=renumber, **SMALL)
    report = same_tokens(method, world.lm, world.oracle, world.prompts, Settings(max_tokens=24))
    assert report.tokens > 150
    assert not report.near_ties


def listened(lm: LM, method: Specextend, prompt: list[int], tokens: int) -> tuple[Any, list[int]]:
    """The answer, and the rows that every draft forward behind the reading of the text attended to."""
    seen: list[int] = []
    forward = lm.forward

    def listening(asks: Any) -> Any:
        for sequence, tree, want in asks:
            if sequence.drafts and isinstance(want.logits, tuple):
                seen.append(sequence.past.lengths[0] + len(tree))
        return forward(asks)

    lm.forward = listening  # type: ignore[method-assign]
    try:
        (answer,) = decode(lm, method, [prompt], Settings(max_tokens=tokens))
    finally:
        del lm.forward
    return answer, seen


def test_a_draft_step_reads_as_much_however_long_the_text(long: LM) -> None:
    method = Specextend(draft=long, chunk=32, chunks=8, every=2, depth=4, width=2, nodes=6)
    most = {}
    for length in (600, 1200, 2400, 4800):
        answer, seen = listened(long, method, words(length), 10)
        assert answer.stats.draft_forwards > 4
        most[length] = max(seen)
    print(f"rows that a draft step attends to, by prompt: {most}")
    # Eight chunks, the newest one, and what was drafted and accepted since.
    assert all(rows <= 9 * 32 + 6 * 2 + 10 for rows in most.values())
    assert max(most.values()) - min(most.values()) <= 32


def test_the_working_cache_is_taken_anew_every_so_often(long: LM) -> None:
    prompt = words(200)
    taken: list[int] = []
    method = Specextend(draft=long, **SMALL)
    sequences: list[Any] = []
    forward = long.forward

    def listening(asks: Any) -> Any:
        for sequence, _, want in asks:
            if sequence.drafts and isinstance(want.logits, tuple) and all(s is not sequence for s in sequences):
                sequences.append(sequence)
                taken.append(len(sequence))
        return forward(asks)

    long.forward = listening  # type: ignore[method-assign]
    try:
        (answer,) = decode(long, method, [prompt], Settings(max_tokens=30))
    finally:
        del long.forward
    assert len(taken) in (answer.stats.rounds // 2, answer.stats.rounds // 2 + 1)
    assert all(rows <= 3 * 4 for rows in taken)


def test_what_the_target_looks_at_is_worth_more_than_what_is_near() -> None:
    """Networks as their own drafts, so that the working cache is all the difference: retrieved against recent, with
    positions as they are. (A trained needle task would need a model that copies; the embedded one does not.)"""
    kept = {1: [0, 0], 10_000: [0, 0]}
    for seed in range(10):
        lm = random_network(seed, spread=4.0)
        for every, counts in kept.items():
            method = Specextend(
                draft=lm, chunk=4, chunks=6, every=every, depth=3, width=1, nodes=3, gain=0.0, renumber="off"
            )
            (answer,) = decode(lm, method, [words(300, seed)], Settings(max_tokens=60))
            counts[0] += answer.stats.accepted
            counts[1] += answer.stats.drafted
    retrieved, recent = (accepted / drafted for accepted, drafted in kept.values())
    print(f"accepted share of the drafts: retrieved {retrieved:.3f}, recent {recent:.3f}")
    assert retrieved > 1.1 * recent


def test_a_text_within_the_working_cache_is_drafted_from_whole(long: LM) -> None:
    """With the target as its draft nothing is left out, so every greedy draft holds the target's own token."""
    (answer,) = decode(
        long, Specextend(draft=long, every=3, depth=4, width=1, gain=0.0), [words(40)], Settings(max_tokens=21)
    )
    assert answer.stats.target_forwards == 1 + 4  # five tokens a round


def test_levels_end_where_they_add_little(long: LM) -> None:
    eager = decode(long, Specextend(draft=long, gain=0.0, depth=6), [words(40)], Settings(max_tokens=12))[0].stats
    wary = decode(long, Specextend(draft=long, gain=0.99, depth=6), [words(40)], Settings(max_tokens=12))[0].stats
    assert len(wary.offered) < len(eager.offered)


def test_positions_that_cannot_be_moved() -> None:
    world = network_world("gpt2")
    with pytest.raises(CapabilityError, match="renumber='on' cannot be"):
        decode(world.lm, Specextend(draft=world.lm, renumber="on"), [[1, 2, 3]], Settings(max_tokens=4))
    (answer,) = decode(world.lm, Specextend(draft=world.lm), [[1, 2, 3]], Settings(max_tokens=4))
    assert "keeps the text's positions" in answer.stats.note


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": 0}, "chunk=0 is not allowed: at least 1"),
        ({"every": 0}, "every=0 is not allowed: at least 1"),
        ({"gain": 1.0}, "gain=1.0 is not allowed"),
        ({"renumber": "yes"}, "renumber='yes' is not allowed: auto, on, off"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Specextend(**fields)
