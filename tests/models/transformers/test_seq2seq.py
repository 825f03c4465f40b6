"""Encoder-decoders: packed decoder trees over several sources give the logits of each text on its own, and answers are
those of transformers' generate. The oracle is an untouched twin of the network."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import segue
from segue.api import Model
from segue.data import CapabilityError, DraftTree, Want
from segue.laws.worlds import TEXT_TO_TEXT, network, network_world
from segue.models.load import load
from segue.models.sequence import Mark, Sequence
from segue.models.transformers import seq2seq_attention, seq2seq_parts
from segue.models.transformers.linear import LeanLinear, dense_or_packed
from segue.models.transformers.load import wrap
from segue.models.transformers.seq2seq import Seq2SeqLM

TOLERANCE, LEAN_TOLERANCE = 2e-5, 1e-4  # in float32; in float64 lean parts give the very same logits
VOCAB = 96
CONTEXT = 96
RELATIVE = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
RELATIVE |= {"decoder_start_token_id": 0, "eos_token_id": 1}
ABSOLUTE = {"vocab_size": VOCAB, "d_model": 32, "max_position_embeddings": CONTEXT, "decoder_start_token_id": 2}
for half in ("encoder", "decoder"):
    ABSOLUTE |= {f"{half}_layers": 2, f"{half}_attention_heads": 4, f"{half}_ffn_dim": 48}
# Beside those of the laws' worlds: nothing in Segue goes by a family's name.
OTHERS: dict[str, Callable[[], Any]] = {
    "umt5": lambda: tf.UMT5Config(**RELATIVE),  # a bias of its own in every layer
    "t5-uneven": lambda: tf.T5Config(**RELATIVE, num_decoder_layers=3),
    "mbart": lambda: tf.MBartConfig(**ABSOLUTE),
    "pegasus": lambda: tf.PegasusConfig(**{**ABSOLUTE, "decoder_start_token_id": 0}),
    "m2m": lambda: tf.M2M100Config(**ABSOLUTE),  # padding has no position
    "blenderbot": lambda: tf.BlenderbotConfig(**ABSOLUTE),
}


def fresh(family: str) -> Any:
    if family in TEXT_TO_TEXT:
        return network(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = tf.AutoModelForSeq2SeqLM.from_config(OTHERS[family]()).eval()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim >= 2:
                sharp = 4.0 if any(part in name for part in (".q.", ".k.", "q_proj", "k_proj")) else 1.0
                weight.copy_(torch.randn(weight.shape, generator=source) * 0.12 * sharp)
    if family == "mbart":
        net.generation_config.forced_bos_token_id = 7
    return net


@dataclass(frozen=True)
class Pair:
    lm: Seq2SeqLM
    oracle: Any
    tolerance: float = TOLERANCE

    def logits(self, source: list[int], text: list[int]) -> torch.Tensor:
        with torch.no_grad():
            out = self.oracle(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([text]), use_cache=False)
        logits: torch.Tensor = out.logits[0]
        return logits

    def greedy(self, source: list[int], new: int, **how: Any) -> list[int]:
        ids = torch.tensor([source])
        # transformers makes its cache for as many decoder layers as the encoder has.
        how["use_cache"] = self.oracle.config.num_hidden_layers == self.lm.parts.layers
        with torch.no_grad():
            out = self.oracle.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, max_new_tokens=new, **how
            )
        return [int(t) for t in out[0, 1:]]


def make(family: str, lean: bool) -> Pair:
    net = fresh(family)
    oracle = copy.deepcopy(net)
    lm = wrap(net, name=family, make=dense_or_packed if lean else None)
    assert isinstance(lm, Seq2SeqLM)
    return Pair(lm, oracle, LEAN_TOLERANCE if lean else TOLERANCE)


@pytest.fixture(scope="module", params=[(f, lean) for lean in (False, True) for f in (*TEXT_TO_TEXT, *OTHERS)], ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return make(*request.param)


@pytest.fixture(scope="module")
def t5() -> Pair:
    return make("t5", True)


@pytest.fixture(scope="module")
def bart() -> Pair:
    return make("bart", True)


def tokens(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(8, VOCAB) for _ in range(size)]


def random_tree(rng: random.Random, size: int) -> DraftTree:
    tree = DraftTree.root(rng.randrange(8, VOCAB))
    for _ in range(size - 1):
        tree.add(rng.randrange(max(0, len(tree) - 4), len(tree)), rng.randrange(8, VOCAB))
    return tree


def source_of(sequence: Sequence) -> list[int]:
    ids: list[int] = sequence.past.source.ids  # type: ignore[attr-defined]
    return ids


def check(pair: Pair, sequences: list[Sequence], trees: list[DraftTree]) -> None:
    """Every root-to-leaf path of every tree has the oracle's logits."""
    scores = pair.lm.forward([(s, t, Want()) for s, t in zip(sequences, trees, strict=True)])
    for sequence, tree, mine in zip(sequences, trees, scores, strict=True):
        for leaf in tree.leaves():
            path = tree.path(leaf)
            text = sequence.tokens + [tree.tokens[i] for i in path]
            theirs = pair.logits(source_of(sequence), text)[-len(path) :]
            assert float((mine.logits[path] - theirs).abs().max()) < pair.tolerance * max(1.0, float(theirs.std()))


def deepest_path(tree: DraftTree) -> list[int]:
    return tree.path(max(range(len(tree)), key=lambda node: tree.depths[node]))


def test_packs_commits_rollbacks_and_forks(pair: Pair) -> None:
    rng = random.Random(1)
    sequences = [pair.lm.reading(tokens(rng, n)) for n in (3, 11, 3)]
    prompts = [DraftTree.chain([*pair.lm.start_ids, *tokens(rng, n)]) for n in (1, 7, 19)]
    check(pair, sequences, prompts)
    for sequence, prompt in zip(sequences, prompts, strict=True):
        sequence.commit(list(range(len(prompt))))
    marks = [s.mark() for s in sequences]
    for size in (5, 9, 1):
        trees = [random_tree(rng, size + i) for i in range(3)]
        check(pair, sequences, trees)
        for sequence, tree in zip(sequences, trees, strict=True):
            sequence.commit(deepest_path(tree))
    sequences[1].rollback(marks[1])
    branch = sequences[2].fork()
    check(pair, [*sequences, branch], [random_tree(rng, 6) for _ in range(4)])


def test_forks_share_a_long_prefix_and_the_source(pair: Pair) -> None:
    rng = random.Random(2)
    parent = pair.lm.reading(tokens(rng, 9))
    pair.lm.forward([(parent, DraftTree.chain([*pair.lm.start_ids, *tokens(rng, 70)]), Want(logits="none"))])
    parent.commit(list(range(71)))
    family = [parent, parent.fork(), parent.fork()]
    assert len(parent.past.shared) == 1  # type: ignore[attr-defined]
    assert len({id(s.past.source) for s in family}) == 1  # type: ignore[attr-defined]
    for size in (1, 5):
        trees = [random_tree(rng, size) for _ in family]
        check(pair, family, trees)
        for sequence, tree in zip(family, trees, strict=True):
            sequence.commit(deepest_path(tree))
    family[0].rollback(Mark(40, None))
    other = pair.lm.reading(tokens(rng, 20))
    check(pair, [*family, other], [random_tree(rng, 5) for _ in range(4)])
    family[1].release()
    check(pair, [family[2], family[1]], [random_tree(rng, 3), DraftTree.chain([*pair.lm.start_ids, 9])])


def test_answers_are_those_of_generate(pair: Pair) -> None:
    rng = random.Random(3)
    model = Model(pair.lm)
    sources = [tokens(rng, n) for n in (1, 5, 5, 14, 50)]
    expected = [pair.greedy(source, 16) for source in sources]
    for method in ("plain", "prompt_lookup", "token_recycling", "lookahead"):
        assert [model.generate(s, method, max_tokens=16).tokens for s in sources] == expected
        assert [a.tokens for a in model.generate(sources, method, max_tokens=16)] == expected
    draft = segue.method("draft_model", draft=pair.lm)
    assert [a.tokens for a in model.generate(sources, draft, max_tokens=16)] == expected


def test_many_rows_go_beyond_the_table_of_positions(bart: Pair) -> None:
    rng = random.Random(4)
    sequences = [bart.lm.reading(tokens(rng, 4)) for _ in range(5)]
    check(bart, sequences, [DraftTree.chain([2, *tokens(rng, 39)]) for _ in sequences])


def test_rows_and_states_that_are_wanted(t5: Pair) -> None:
    rng = random.Random(5)
    a, b = t5.lm.reading(tokens(rng, 4)), t5.lm.reading(tokens(rng, 6))
    tree, chain = random_tree(rng, 8), DraftTree.chain([0, *tokens(rng, 5)])
    last, some = t5.lm.forward([(a, chain, Want(logits="last", hidden=(0, -1))), (b, tree, Want(logits=(2, 5)))])
    assert last.logits.shape == (1, VOCAB)
    assert some.nodes == [2, 5]
    with torch.no_grad():
        out = t5.oracle(
            input_ids=torch.tensor([source_of(a)]),
            decoder_input_ids=torch.tensor([chain.tokens]),
            output_hidden_states=True,
        )
    for layer in (0, -1):
        torch.testing.assert_close(last.hidden[layer], out.decoder_hidden_states[layer][0], atol=1e-4, rtol=1e-4)
    with pytest.raises(CapabilityError, match="layers cannot be chosen"):
        t5.lm.forward([(a, chain, Want(layers=(0,)))])


def test_a_source_is_encoded_once_and_equal_lengths_together(bart: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    encode = seq2seq_parts.Parts.encode

    def counting(self: Any, ids: torch.Tensor, start: int) -> Any:
        calls.append(tuple(ids.shape))
        return encode(self, ids, start)

    monkeypatch.setattr(seq2seq_parts.Parts, "encode", counting)
    model = Model(bart.lm)
    model.generate([[9, 10, 11], [12, 13, 14], [15, 16]], "prompt_lookup", max_tokens=12)
    assert sorted(calls) == [(1, 2), (2, 3)]
    calls.clear()
    model.generate([9, 10, 11], "plain", n=4, temperature=1.0, max_tokens=6)
    assert calls == [(1, 3)]


def test_samples_follow_the_models_distribution(bart: Pair) -> None:
    """After the forced first token: 1500 draws; a chi-square over the frequent tokens far from its tail."""
    source, n = [9, 10, 11, 12], 1500
    answers = Model(bart.lm).generate(source, "prompt_lookup", n=n, temperature=0.7, seed=0, max_tokens=3)
    assert {a.tokens[0] for a in answers} == {5}
    p = torch.softmax(bart.logits(source, [2, 5])[-1].double() / 0.7, -1)
    counts = torch.bincount(torch.tensor([a.tokens[1] for a in answers]), minlength=VOCAB).double()
    often = p * n >= 5
    expected = torch.cat([p[often], p[~often].sum()[None]]) * n
    seen = torch.cat([counts[often], counts[~often].sum()[None]])
    statistic, degrees = float(((seen - expected) ** 2 / expected).sum()), int(often.sum())
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize(
    "own",
    [
        {"no_repeat_ngram_size": 2, "min_length": 9},
        {"bad_words_ids": [[40], [41, 42]], "suppress_tokens": [50, 51], "begin_suppress_tokens": [60]},
        {"encoder_no_repeat_ngram_size": 1, "repetition_penalty": 1.4},
        {"forced_bos_token_id": 9, "forced_eos_token_id": [3, 4]},
    ],
)
def test_what_a_checkpoint_asks_for_is_done(own: dict[str, Any]) -> None:
    net = network("bart")
    net.generation_config.update(**own, eos_token_id=64)
    pair = Pair(wrap(copy.deepcopy(net)), net)  # type: ignore[arg-type]
    for source in ([30, 31, 32, 33, 34], [70, 12, 45, 45, 88, 9, 17]):
        for method in ("plain", "prompt_lookup", "token_recycling"):
            assert Model(pair.lm).generate(source, method, max_tokens=20).tokens == pair.greedy(source, 20)
        ours = Model(pair.lm).generate(source, "lookahead", max_tokens=20, min_tokens=12, repetition_penalty=1.2)
        assert ours.tokens == pair.greedy(source, 20, min_new_tokens=12, repetition_penalty=1.2)


@pytest.mark.parametrize("family", TEXT_TO_TEXT)
def test_checkpoints_load_from_their_folder(family: str, tmp_path: Path) -> None:
    net = network(family)
    net.save_pretrained(tmp_path)
    lm = load(tmp_path)
    assert isinstance(lm, Seq2SeqLM)
    assert any(isinstance(m, LeanLinear) for m in lm.network.modules())
    assert 0 < lm.bytes_per_token < lm.weight_bytes
    source = [9, 8, 7, 6, 20, 21]
    assert Model(lm).generate(source, max_tokens=16).tokens == Pair(lm, net).greedy(source, 16)
    assert load(tmp_path, quantize="int8", dtype="float32").weight_bytes < lm.weight_bytes
    if family != "t5":  # so sharp a network is chaotic in bfloat16
        assert load(tmp_path, dtype="bfloat16").precision == "bfloat16"
    with pytest.raises(CapabilityError, match="leave invariant out"):
        load(tmp_path, invariant=True)


def test_wrong_sources(bart: Pair, t5: Pair) -> None:
    model = Model(bart.lm)
    for source, message in (
        ([], "the source is empty"),
        ([5, VOCAB], "outside the vocabulary"),
        ([9] * (CONTEXT + 1), "takes 96: shorten it"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(source)
    assert model.generate([9] * CONTEXT, max_tokens=1000).stats.tokens == CONTEXT - 1
    assert t5.lm.context_length == t5.lm.source_length == 4096
    with pytest.raises(ValueError, match="has no encoder"):
        network_world("llama").lm.reading([1])


def test_drafts_must_read_what_the_target_reads(bart: Pair) -> None:
    llama = network_world("llama").lm
    for target, draft in ((bart.lm, llama), (llama, bart.lm)):
        with pytest.raises(ValueError, match="must read and write what its target does"):
            Model(target).generate([9, 10], segue.method("draft_model", draft=draft))
    draft = wrap(network("bart", seed=3), name="other")
    answer = Model(bart.lm).generate([9, 10, 11], segue.method("draft_model", draft=draft), max_tokens=20)
    assert answer.tokens == bart.greedy([9, 10, 11], 20)
    assert answer.stats.draft_forwards > 0


def test_the_cost_of_a_forward_is_measured(t5: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    assert t5.lm.cost.rows[0] == 1


def test_refused_families() -> None:
    led = {k: v for k, v in ABSOLUTE.items() if k != "max_position_embeddings"}
    for config, message in (
        (tf.LEDConfig(**led), "led"),
        (tf.BigBirdPegasusConfig(**ABSOLUTE), "reads short texts with other parts than long ones"),
    ):
        net = tf.AutoModelForSeq2SeqLM.from_config(config).eval()
        with pytest.raises(CapabilityError, match=message):
            wrap(net)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("mutation", ["every source", "places of the pack", "no ancestors"])
def test_a_mutated_forward_is_told_at_load(family: str, mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, parts = seq2seq_attention.Pack, seq2seq_parts.Parts
    if mutation == "every source":
        first = pack._cross
        monkeypatch.setattr(pack, "_cross", lambda self, *a: first(_with_one_source(self), *a))
    elif mutation == "places of the pack":
        decode = parts.decode
        monkeypatch.setattr(parts, "decode", lambda self, ids, at, *a: decode(self, ids, torch.arange(len(at)), *a))
        bias = seq2seq_attention.distance_bias
        monkeypatch.setattr(
            seq2seq_attention, "distance_bias", lambda item, table, like: bias(item, _still(table), like)
        )
    else:
        monkeypatch.setattr(DraftTree, "ancestors", lambda tree: torch.ones(len(tree), len(tree), dtype=torch.bool))
    with pytest.raises(CapabilityError, match="differ by"):
        wrap(network(family))


def _with_one_source(pack: Any) -> Any:
    """All items over the first one's source."""
    items = [item for _, group in pack._readers for item in group]
    pack._readers = [(pack._readers[0][0], sorted(items, key=lambda item: item.start))]
    return pack


def _still(table: torch.Tensor) -> torch.Tensor:
    """Every distance as if it were one."""
    return table[:, 1:2].expand_as(table)
