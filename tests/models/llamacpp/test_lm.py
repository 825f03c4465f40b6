"""llama.cpp as a backend: packed trees give each text's own logits, and few sequence numbers are lent and given back.

The oracle is the transformers network that the file was made from, one plain forward over each explicit text.
"""

from __future__ import annotations

import copy
import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import segue
from segue.api import Model
from segue.data import CapabilityError, DraftTree, Settings, Want
from segue.decode.plain import Plain
from segue.laws.base import decode
from segue.models.engine import Engine
from segue.models.sequence import Mark, Sequence
from tests.models.families import VOCAB, network
from tests.models.transformers.test_packed_trees import random_tree, tokens

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from segue.models.llamacpp.convert import convert
from segue.models.llamacpp.load import load

TOLERANCE = 2e-5
FAMILIES = ("llama", "llama3-rope", "qwen3")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    net = network(request.param)
    path = convert(net, None, tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf", "f32")
    return load(path, kv_dtype="float32"), net


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(network("llama"), None, tmp_path_factory.mktemp("gguf") / "llama.gguf", "f32")


def check(pair: tuple[Any, Any], sequences: list[Sequence], trees: list[DraftTree]) -> float:
    lm, net = pair
    scores = lm.forward([(s, t, Want()) for s, t in zip(sequences, trees, strict=True)])
    worst = 0.0
    for sequence, tree, mine in zip(sequences, trees, scores, strict=True):
        for leaf in tree.leaves():
            path = tree.path(leaf)
            text = sequence.tokens + [tree.tokens[i] for i in path]
            with torch.no_grad():
                oracle = net(torch.tensor([text]), use_cache=False).logits[0, -len(path) :]
            worst = max(worst, float((mine.logits[path] - oracle).abs().max()))
    return worst


def test_packs_commits_rollbacks_and_forks(pair: tuple[Any, Any]) -> None:
    rng = random.Random(1)
    lm = pair[0]
    sequences = [lm.sequence() for _ in range(3)]
    prompts = [DraftTree.chain(tokens(rng, n)) for n in (1, 7, 19)]
    assert check(pair, sequences, prompts) < TOLERANCE
    for sequence, prompt in zip(sequences, prompts, strict=True):
        sequence.commit(list(range(len(prompt))))
    marks = [s.mark() for s in sequences]
    for size in (5, 9, 1, 14):
        trees = [random_tree(rng, size + i) for i in range(3)]
        assert check(pair, sequences, trees) < TOLERANCE
        for sequence, tree in zip(sequences, trees, strict=True):
            leaf = rng.choice(tree.leaves())
            sequence.commit(tree.path(leaf)[: rng.randint(1, 4)])
    sequences[1].rollback(marks[1])
    branch = sequences[2].fork()
    assert check(pair, [*sequences, branch], [random_tree(rng, 6) for _ in range(4)]) < TOLERANCE
    # A tree that was never committed leaves nothing behind.
    assert check(pair, [branch], [random_tree(rng, 8)]) < TOLERANCE
    branch.rollback(Mark(3, None))
    assert check(pair, [branch], [random_tree(rng, 4)]) < TOLERANCE
    sequences[0].release()
    assert check(pair, sequences[:1], [random_tree(rng, 4)]) < TOLERANCE


def test_long_packs_are_cut_into_calls(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.models.llamacpp.lm.BATCH", 16)
    rng = random.Random(2)
    sequences = [pair[0].sequence() for _ in range(4)]
    trees = [random_tree(rng, 13), DraftTree.chain(tokens(rng, 40)), random_tree(rng, 3), random_tree(rng, 9)]
    assert check(pair, sequences, trees) < TOLERANCE


def test_rows_and_ranks_that_are_wanted(pair: tuple[Any, Any]) -> None:
    rng = random.Random(4)
    lm = pair[0]
    a, b = lm.sequence(), lm.sequence()
    tree, chain = random_tree(rng, 8), DraftTree.chain(tokens(rng, 6))
    last, some = lm.forward([(a, chain, Want(logits="last")), (b, tree, Want(logits=(2, 5)))])
    assert last.logits.shape == (1, VOCAB)
    assert some.nodes == [2, 5]
    (ranked,) = lm.forward([(b, tree, Want(topk=3))])
    assert torch.equal(ranked.topk, ranked.logits.topk(3).indices)
    torch.testing.assert_close(ranked.row(5), some.row(5))
    (none,) = lm.forward([(a, chain, Want(logits="none"))])
    assert none.logits.shape[0] == 0


def test_numbers_are_given_back(llama: Path) -> None:
    lm: Any = load(llama, kv_dtype="float32")
    spare = lm.branches
    sequence = lm.sequence()
    lm.forward([(sequence, random_tree(random.Random(0), 20), Want())])
    assert lm.branches < spare - 1
    sequence.commit([0])
    assert lm.branches == spare - 1
    others = [sequence.fork() for _ in range(5)]
    assert lm.branches == spare - 6
    del others, sequence
    gc.collect()
    assert lm.branches == spare


def test_what_it_cannot_do_is_said(llama: Path, tmp_path: Path) -> None:
    lm = load(llama)
    for want, word in (
        (Want(hidden=(-1,)), "hidden states"),
        (Want(layers=(0,)), "layers"),
        (Want(attention=((0,), (0,))), "attention weights"),
    ):
        with pytest.raises(
            CapabilityError,
            match=f"this method needs .*{word}, which llama.cpp does not give .*: load the checkpoint with",
        ):
            lm.forward([(lm.sequence(), DraftTree.root(3), want)])
    wide = DraftTree.from_paths(3, [(t,) for t in range(40)])
    with pytest.raises(CapabilityError, match="trees of 32 leaves, and this one has 40"):
        lm.forward([(lm.sequence(), wide, Want())])
    held = [(lm.sequence(), DraftTree.root(3), Want()) for _ in range(65)]
    lm.forward(held[:64])
    with pytest.raises(CapabilityError, match="at most 64 sequences"):
        lm.forward(held[64:])
    del held
    (tmp_path / "no.gguf").write_bytes(b"something else")
    (tmp_path / "torn.gguf").write_bytes(llama.read_bytes()[:5000])
    for name, message in (("no.gguf", "is no GGUF file"), ("torn.gguf", "damaged")):
        with pytest.raises(ValueError, match=message):
            segue.model(tmp_path / name)
    for options, message in (
        ({"kv_dtype": "int8"}, "choose from float16, float32"),
        ({"kv_rows": 0}, "kv_rows=0"),
        ({"sequences": 1000}, "at most 256"),
        ({"dtype": "float32"}, "means nothing to a GGUF file"),
        ({"quantize": "q8_0"}, "means nothing to a GGUF file"),
        ({"backend": "transformers"}, "leave the backend out"),
        ({"backend": "onnx"}, "choose from transformers, llama.cpp"),
    ):
        with pytest.raises(ValueError, match=message):
            segue.model(llama, **options)


def test_many_requests_share_few_rows_and_numbers(llama: Path) -> None:
    """More requests than the cache has rows or numbers for wait for each other; each is answered as if alone."""
    lm: Any = load(llama, kv_dtype="float32", kv_rows=600, sequences=40)
    rng = random.Random(5)
    prompts = [tokens(rng, rng.randint(1, 30)) for _ in range(24)]
    settings = Settings(max_tokens=12)
    for name in ("plain", "token_recycling", "lookahead"):
        method = segue.method(name) if name != "plain" else Plain()
        together = decode(lm, method, prompts, settings, engine=Engine())
        lm.reset_stores()
        alone = [decode(lm, method, [prompt], settings)[0] for prompt in prompts]
        assert [a.tokens for a in together] == [a.tokens for a in alone]
    with pytest.raises(ValueError, match="was loaded with 300"):
        Model(load(llama, kv_rows=300)).generate([3] * 100, method="plain", max_tokens=150, ignore_eos=True)
    samples = Model(lm).generate(prompts[0], method="plain", n=6, temperature=1.0, seed=1, max_tokens=8)
    assert len({tuple(s.tokens) for s in samples}) > 1


def test_the_embedded_model_through_both_backends() -> None:
    ours, theirs = segue.model(backend="llama.cpp", quantize="f32", kv_dtype="float32"), segue.model(dtype="float32")
    assert (ours.lm.name, ours.lm.backend, ours.lm.precision) == ("mini", "llama.cpp", "f32")
    assert ours.lm.eos_ids == theirs.lm.eos_ids
    prompt = "User: I want to book a table for two.\nAssistant:"
    for method in ("plain", "auto", "draft_model"):
        left, right = (m.generate(prompt, method=method, max_tokens=32) for m in (ours, theirs))
        assert left.text == right.text
    assert "".join(ours.stream(prompt, method="lookahead", max_tokens=32)) == right.text
    quantized = segue.model(backend="llama.cpp", quantize="q8_0")
    assert quantized.lm.weight_bytes < 0.3 * ours.lm.weight_bytes
    with pytest.raises(ValueError, match="q5_k"):
        segue.model(backend="llama.cpp", quantize="q5_k")


def test_a_copy_that_goes_leaves_the_model_to_the_others(llama: Path) -> None:
    lm = load(llama, kv_dtype="float32")
    before = decode(lm, Plain(), [[1, 2, 3]], Settings(max_tokens=4))[0].tokens
    other = copy.copy(lm)
    assert decode(other, Plain(), [[1, 2, 3]], Settings(max_tokens=4))[0].tokens == before
    del other
    gc.collect()
    assert decode(lm, Plain(), [[1, 2, 3]], Settings(max_tokens=4))[0].tokens == before
