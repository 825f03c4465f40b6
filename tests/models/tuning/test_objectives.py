"""Every objective's labels against ones worked out by hand, on a network that says what it was asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.laws.worlds import network
from segue.models.tuning.base import IGNORED, entropy, following
from segue.models.tuning.free import FreeTuning
from segue.models.tuning.lexical_units import LexicalUnitTuning
from segue.models.tuning.set_block import SetBlockTuning
from segue.models.tuning.space import SpaceTuning

V, MASK = 12, 11


@dataclass
class Recording:
    """A network with the same logits whatever it reads, but for the tokens that `sure` says it foresees."""

    sure: dict[tuple[int, int], int] = field(default_factory=dict)  # (row, place) -> token that it is sure of there
    asked: list[dict[str, Any]] = field(default_factory=list)
    dtype: torch.dtype = torch.float32

    def __call__(self, **given: Any) -> SimpleNamespace:
        self.asked.append(given)
        size, length = given["input_ids"].shape
        logits = torch.arange(size * length * V, dtype=torch.float32).view(size, length, V).sin()
        for (row, place), token in self.sure.items():
            logits[row, place, token] = 30.0
        return SimpleNamespace(logits=logits)

    @property
    def read(self) -> list[list[int]]:
        """What it read last."""
        found: list[list[int]] = self.asked[-1]["input_ids"].tolist()
        return found


def cross_entropy(logits: Tensor, labels: dict[tuple[int, int], int]) -> float:
    """The mean over these places, one by one."""
    terms = [-logits[row, place].log_softmax(-1)[token] for (row, place), token in labels.items()]
    return float(torch.stack(terms).mean())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_there(ids: Tensor) -> Tensor:
    return torch.ones_like(ids, dtype=torch.bool)


def test_labels_are_the_next_tokens_and_padding_has_none() -> None:
    ids = torch.tensor([[4, 5, 6, 7], [1, 2, 0, 0]])
    there = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    assert following(ids, there).tolist() == [[5, 6, 7, IGNORED], [2, IGNORED, IGNORED, IGNORED]]


def test_nothing_to_learn_is_a_loss_of_nothing() -> None:
    logits = torch.randn(1, 2, V, requires_grad=True)
    loss = entropy(logits, torch.full((1, 2), IGNORED))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None


TEXT = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])


@pytest.mark.parametrize("seed", range(12))
def test_space_masks_a_stretch_and_labels_it_one_place_ahead(seed: int) -> None:
    net, k = Recording(), 2
    loss = SpaceTuning(mask=MASK, k=k, share=1.0).loss(net, TEXT, all_there(TEXT), seeded(seed))
    (read,) = net.read
    cut = read.index(MASK)
    assert 1 <= cut <= 9
    end = min(cut + k + 1, 10)  # k + 1 masks, as far as the text goes
    assert read[:end] == TEXT[0, :cut].tolist() + [MASK] * (end - cut)
    # Before the cut the next token, on the masks too; the last place of the text has none, and what is behind is left.
    labels = {(0, place): int(TEXT[0, place + 1]) for place in range(min(end, 9))}
    assert float(loss) == pytest.approx(cross_entropy(net(input_ids=TEXT).logits, labels), rel=1e-5)


def test_space_cuts_everywhere_and_only_its_share_of_the_texts() -> None:
    texts = TEXT.expand(400, -1)
    net = Recording()
    SpaceTuning(mask=MASK, k=2).loss(net, texts, all_there(texts), seeded(0))
    cuts = [row.index(MASK) for row in net.read if MASK in row]
    assert set(cuts) == set(range(1, 10))
    assert 160 < len(cuts) < 240
    assert all(row == TEXT[0].tolist() for row in net.read if MASK not in row)
    assert torch.equal(TEXT[0], torch.arange(1, 11))  # the texts themselves are left as they were


def test_space_cuts_within_a_padded_text() -> None:
    ids = torch.tensor([[1, 2, 3, 0, 0, 0]])
    there = torch.tensor([[1, 1, 1, 0, 0, 0]]).bool()
    for seed in range(8):
        net = Recording()
        loss = SpaceTuning(mask=MASK, k=2, share=1.0).loss(net, ids, there, seeded(seed))
        assert net.read[0].index(MASK) in (1, 2)
        labels = {(0, 0): 2, (0, 1): 3}
        assert float(loss) == pytest.approx(cross_entropy(net(input_ids=ids).logits, labels), rel=1e-5)


def test_a_lexical_unit_is_masked_and_what_is_behind_it_is_left() -> None:
    """The model foresees the tokens at places 3, 4, 5: the row before each is sure of it."""
    net = Recording(sure={(0, place - 1): int(TEXT[0, place]) for place in (3, 4, 5)})
    loss = LexicalUnitTuning(mask=MASK, k=4).loss(net, TEXT, all_there(TEXT), seeded(0))
    assert net.asked[0]["input_ids"].tolist() == TEXT.tolist()
    # Three pads, as a decoder of k=4 reads them, though the unit has three tokens; place 2 says the first of these.
    assert net.read == [[1, 2, 3, MASK, MASK, MASK, 7, 8, 9, 10]]
    labels = {(0, place): int(TEXT[0, place + 1]) for place in range(5)}
    assert float(loss) == pytest.approx(cross_entropy(net(input_ids=TEXT).logits, labels), rel=1e-5)


def test_one_of_the_units_is_drawn_and_texts_without_one_are_learned_as_they_are() -> None:
    texts = TEXT.repeat(60, 1)
    sure = {(row, place - 1): int(TEXT[0, place]) for row in range(59) for place in (1, 2, 6, 7)}
    sure[59, 3] = int(TEXT[0, 4])  # a single sure token is no unit
    net = Recording(sure=sure)
    LexicalUnitTuning(mask=MASK, k=3).loss(net, texts, all_there(texts), seeded(0))
    first = [1, MASK, MASK, 4, 5, 6, 7, 8, 9, 10]
    second = [1, 2, 3, 4, 5, 6, MASK, MASK, 9, 10]
    assert all(row in (first, second) for row in net.read[:59])
    assert 15 < net.read[:59].count(first) < 45
    assert net.read[59] == TEXT[0].tolist()


def test_alpha_says_what_is_sure() -> None:
    net = Recording()
    half = math.log(V - 1)  # of this logit more than the others', half the probability
    flat = torch.zeros(1, 10, V)
    flat[0, [2, 3], [4, 5]] = half
    net_call = lambda **given: (net.asked.append(given), SimpleNamespace(logits=flat))[1]  # noqa: E731
    LexicalUnitTuning(mask=MASK, k=2, alpha=0.49).loss(net_call, TEXT, all_there(TEXT), seeded(0))
    assert net.read == [[1, 2, 3, MASK, 5, 6, 7, 8, 9, 10]]
    LexicalUnitTuning(mask=MASK, k=2, alpha=0.51).loss(net_call, TEXT, all_there(TEXT), seeded(0))
    assert net.read == TEXT.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_set_block_lays_a_masked_copy_behind_the_clean_one(seed: int) -> None:
    net = Recording()
    loss = SetBlockTuning(mask=MASK, block=4).loss(net, TEXT, all_there(TEXT), seeded(seed))
    (asked,) = net.asked
    (read,) = net.read
    clean, noisy = read[:10], read[10:]
    assert clean == TEXT[0].tolist()
    hidden = [place for place in range(10) if noisy[place] == MASK]
    assert 0 not in hidden
    assert [noisy[p] for p in range(10) if p not in hidden] == [clean[p] for p in range(10) if p not in hidden]
    assert asked["position_ids"].tolist() == [[*range(10), *range(10)]]
    logits = net(input_ids=asked["input_ids"]).logits
    expected = cross_entropy(logits, {(0, place): clean[place + 1] for place in range(9)})
    if hidden:  # labelled with what stood there, not with what follows
        expected += cross_entropy(logits, {(0, 10 + place): clean[place] for place in hidden})
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # Noisy places see their own block, whole, and the clean text before it.
    seen = (asked["attention_mask"][0, 0] == 0).tolist()
    for place in range(10):
        assert seen[place] == [other <= place for other in range(10)] + [False] * 10
        block = [other for other in range(10) if seen[10 + place][10 + other]]
        assert block == list(range(block[0], block[-1] + 1))
        assert place in block
        assert len(block) <= 4
        assert seen[10 + place][:10] == [other < block[0] for other in range(10)]


def test_set_block_draws_sizes_shares_and_leaves_padding() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 0, 0]])
    there = torch.tensor([[1] * 6 + [0] * 2]).bool()
    sizes, counts = set(), set()
    for seed in range(60):
        net = Recording()
        SetBlockTuning(mask=MASK, block=3).loss(net, ids, there, seeded(seed))
        noisy = net.read[0][8:]
        assert noisy[6:] == [0, 0]
        counts.add(noisy.count(MASK))
        seen = net.asked[0]["attention_mask"][0, 0] == 0
        sizes.add(int(seen[8:, 8:].sum(-1).max()))
    assert sizes == {2, 3}
    assert counts == set(range(6))  # from none to all but the first


@torch.no_grad()
def test_free_weighs_its_exits_by_their_depth() -> None:
    """On a real network: what its first layer's state gives through norm and head, by hand."""
    net = network("llama")
    ids = torch.tensor([[5, 9, 33, 71, 8, 40]])
    states = net(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(states) - 1 == 2
    shallow = net.lm_head(net.model.norm(states[1]))
    deep = net(input_ids=ids).logits
    one, two = (F.cross_entropy(rows[0, :-1], ids[0, 1:]) for rows in (shallow, deep))
    loss = FreeTuning(exit=1).loss(net, ids, all_there(ids), seeded(0))
    assert float(loss) == pytest.approx(float((1 * one + 2 * two) / 3), rel=1e-4)


def test_free_draws_the_shallow_state_towards_the_nearest_deeper_one() -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, 4, 6) for _ in range(4)] + [torch.randn(1, 4, 6)]
    states[2] = states[1] + 0.1  # of four layers the second is nearest to the exit behind the first
    head = torch.nn.Linear(6, V, bias=False).requires_grad_(False)
    norm = torch.nn.Identity()
    fake: Any = lambda **given: SimpleNamespace(hidden_states=tuple(states), logits=head(states[-1]))  # noqa: E731
    fake.base_model = SimpleNamespace(norm=torch.nn.ModuleList([norm])[0])
    fake.get_output_embeddings = lambda: head
    ids = torch.tensor([[1, 2, 3, 4]])
    drawn = FreeTuning(exit=1, distil=0.5).loss(fake, ids, all_there(ids), seeded(0))
    apart = FreeTuning(exit=1, distil=0.0).loss(fake, ids, all_there(ids), seeded(0))
    share = 0.1**2 / float((states[2] ** 2).mean())  # whatever the scale of a model's states
    assert float(drawn - apart) == pytest.approx(0.5 * share, rel=1e-3)
    one, four = (F.cross_entropy(head(state)[0, :-1], ids[0, 1:]) for state in (states[1], states[-1]))
    assert float(apart) == pytest.approx(float((1 * one + 4 * four) / 5), rel=1e-4)


def test_the_exit_is_a_third_of_the_layers_and_leaves_some() -> None:
    assert [FreeTuning().place(layers) for layers in (2, 3, 6, 12)] == [1, 1, 2, 4]
    assert FreeTuning(exit=3).place(4) == 3
    with pytest.raises(ValueError, match="exit=4 is not allowed: the model has 4 layers"):
        FreeTuning(exit=4).place(4)


def test_facts_are_what_the_methods_read_and_what_it_learned_by() -> None:
    assert SpaceTuning(mask=3, k=2).facts() == {"kind": "space", "mask": 3, "k": 2, "share": 0.5}
    assert FreeTuning(exit=2).facts() == {"kind": "free", "exit": 2, "distil": 0.5}
