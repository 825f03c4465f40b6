"""llama.cpp as contestants: drafts change the time only, and nothing is left over from the prompt before."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import segue
from segue.bench.llamacpp import DRAFT_TOKENS, Drafted, Small, llamacpp_peers
from segue.bench.peers import transformers_peers
from segue.data import Settings

PROMPTS = ["User: I want to book a table for two.\nAssistant:", "Once upon a time there was a dog. Once upon a time"]


def test_drafts_change_nothing_but_the_time() -> None:
    model = segue.model(dtype="float32")
    own = transformers_peers("mini", model.lm.dtype, model.lm.device, "mini-draft")  # type: ignore[attr-defined]
    prompts = [model.lm.encode(prompt) for prompt in PROMPTS]
    peers = llamacpp_peers(own[0].network, own[-1].options["assistant_model"], model.lm, 64)
    kinds = [f"llama.cpp {kind}{drafter}" for kind in ("f16", "q8_0") for drafter in ("", " prompt lookup", " draft")]
    assert [peer.name for peer in peers] == kinds
    settings = Settings(max_tokens=24)
    for peer in peers:
        first = [peer.answer(prompt, settings)[0] for prompt in prompts]
        again = [peer.answer(prompt, settings)[0] for prompt in prompts]
        assert first == again
        assert all(len(tokens) == 24 or tokens[-1] in model.lm.eos_ids for tokens in first)
        if peer.name.startswith("llama.cpp f16"):
            assert first == [own[0].answer(prompt, settings)[0] for prompt in prompts]
    drafted = peers[2]
    assert isinstance(drafted, Drafted)
    assert isinstance(drafted.llama.draft_model, Small)
    small = drafted.llama.draft_model
    calls: list[int] = []
    evaluate = small.llama.eval
    small.llama.eval = lambda tokens: (calls.append(len(tokens)), evaluate(tokens))[1]
    answer = drafted.answer(prompts[0], settings)[0]
    assert len(calls) < DRAFT_TOKENS * len(answer)  # some drafts were accepted
    assert max(calls[DRAFT_TOKENS:]) <= DRAFT_TOKENS + 1  # what it has read before it does not read again
    drawn = [drafted.answer(prompts[0], Settings(max_tokens=12, temperature=1.0, seed=seed))[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
