from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import segue
from segue.data import DraftTree, Settings, Want
from segue.decode.speculative.aded import Aded
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.decode.speculative.clasp import Clasp
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.dyspec import Dyspec
from segue.decode.speculative.lookahead import Lookahead
from segue.decode.speculative.multi_candidate import MultiCandidate
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.rasd import Rasd, prune
from segue.decode.speculative.recursive import Recursive
from segue.decode.speculative.specextend import Specextend
from segue.decode.speculative.staged import Staged
from segue.decode.speculative.token_recycling import TokenRecycling
from segue.laws.base import decode
from segue.laws.datastore import dense
from segue.laws.enumerate import distribution, total_variation
from segue.laws.oracle import NetworkOracle
from segue.laws.same_tokens import same_tokens
from segue.laws.worlds import neighbour, network_world, toy_world
from segue.models.lm import LM
from segue.models.run import Run

Listen = Callable[[LM], Any]


def paths_of(tree: DraftTree) -> set[tuple[int, ...]]:
    return {tuple(tree.tokens[i] for i in tree.path(n)[1:]) for n in range(1, len(tree))}


@pytest.mark.parametrize("seed", range(20))
def test_fusing_is_the_union_of_the_paths(seed: int) -> None:
    rng = random.Random(seed)
    a, b = (
        DraftTree.from_paths(9, [[rng.randrange(3) for _ in range(rng.randrange(1, 5))] for _ in range(4)])
        for _ in range(2)
    )
    expected = paths_of(a) | paths_of(b)
    a.merge(b)
    assert paths_of(a) == expected
    assert len(a) == 1 + len(expected)


def test_pruning_goes_by_the_drafts_rows() -> None:
    tree = DraftTree.chain([0, 4, 5])
    row = torch.zeros(8)
    tree.rows = {0: row.index_fill(0, torch.tensor([4, 6]), 1.0), 1: row.index_fill(0, torch.tensor([5, 2]), 1.0)}
    found = DraftTree.from_paths(0, [[4, 5, 7], [4, 3, 1], [6, 1], [2, 2], [4, 2]])
    left = paths_of(prune(found, tree, 2))
    # 2 is not likely at the root, 3 not behind 4; behind 5 and behind 6 the draft was not asked.
    assert left == {(4,), (4, 5), (4, 5, 7), (6,), (6, 1), (4, 2)}


def test_what_the_model_only_scores_is_neither_pruned_by_nor_fused_with() -> None:
    """Lookahead's window may hold what retrieval found: that is still a proposal of its own."""
    tree = DraftTree.root(0)
    window = tree.add(0, 4, scored_only=True)
    tree.rows = {window: torch.zeros(8).index_fill(0, torch.tensor([1]), 1.0)}
    found = DraftTree.from_paths(0, [[4, 5, 6]])
    assert paths_of(prune(found, tree, 1)) == {(4,), (4, 5), (4, 5, 6)}
    tree.merge(found)
    children = tree.children()
    assert [tree.tokens[n] for n in children[0]] == [4]
    world = network_world("gpt2")
    method = Rasd(model=Lookahead(), retrieval=PromptLookup())
    fused = same_tokens(method, world.lm, world.oracle, world.prompts, Settings(max_tokens=20))
    assert fused.tokens > 120


def test_one_source_alone_is_what_it_was() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    settings = Settings(max_tokens=30)
    text = world.prompts[1]
    (alone,) = decode(world.lm, DraftModel(draft=draft, gamma=3), [text], settings)
    nothing = TokenRecycling(keep=False, nodes=1, width=1, depth=1)
    fused = Rasd(model=DraftModel(draft=draft, gamma=3), retrieval=PromptLookup(max_ngram=1, draft_tokens=1), top_k=1)
    (with_little,) = decode(world.lm, fused, [text], settings)
    assert with_little.stats.rounds <= alone.stats.rounds
    (lookup,) = decode(world.lm, PromptLookup(), [text], settings)
    (null,) = decode(world.lm, Rasd(model=nothing, retrieval=PromptLookup()), [text], settings)
    assert null.tokens == lookup.tokens == alone.tokens
    assert null.stats.rounds <= lookup.stats.rounds


def grown(draft: LM) -> dict[str, Speculative]:
    """Every drafter with a draft model that rasd may hold."""
    return {
        "draft_model": DraftModel(draft=draft, gamma=3),
        "multi_candidate": MultiCandidate(draft=draft, candidates="2,1"),
        "recursive": Recursive(draft=draft),
        "recursive, beam": Recursive(draft=draft, mode="beam", width=2, depth=3),
        "staged": Staged(draft=draft, inner=PromptLookup(), siblings=1),
        "dyspec": Dyspec(draft=draft, nodes=6),
        "dyspec, layer-wise": Dyspec(draft=draft, nodes=6, layerwise=True),
        "specextend": Specextend(draft=draft, depth=3, width=2, nodes=5, gain=0.0),
    }


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "name", ["draft_model", "multi_candidate", "recursive", "staged", "dyspec", "dyspec, layer-wise", "specextend"]
)
def test_every_draft_model_shows_the_rows_that_pruning_reads(name: str, temperature: float, first_tree: Any) -> None:
    """Of every node with children: the draft network's own logits after the node's text."""
    world = network_world("qwen3")
    draft = neighbour(world.lm)
    oracle = NetworkOracle(draft)  # type: ignore[arg-type]
    prompt = list(world.prompts[1])
    settings = Settings(max_tokens=12, temperature=temperature, seed=1)
    tree = first_tree(world.lm, grown(draft)[name], prompt, settings)
    (pending,) = decode(world.lm, segue.method("plain"), [prompt], replace(settings, max_tokens=1))
    assert tree.tokens[0] == pending.tokens[0]
    assert set(tree.rows) >= set(tree.parents[1:])
    for node, row in tree.rows.items():
        text = prompt + [tree.tokens[i] for i in tree.path(node)]
        logits = oracle.answer(text, Settings(max_tokens=1)).logits[0]
        assert torch.allclose(row, logits, atol=1e-4)


@pytest.mark.parametrize("name", ["dyspec", "specextend"])
def test_trees_of_every_shape_prune_what_was_retrieved(name: str, first_tree: Any) -> None:
    world = network_world("qwen3")
    model = grown(neighbour(world.lm))[name]
    prompt, settings = list(world.prompts[1]) * 2, Settings(max_tokens=12)
    found = [first_tree(world.lm, Rasd(model=model, retrieval=Unlikely(), top_k=k), prompt, settings) for k in (1, 96)]
    assert "unlikely" not in found[0].source
    assert "unlikely" in found[1].source


class Unlikely(PromptLookup):
    """Retrieves a token that the draft model does not hold for the likeliest."""

    def propose(self, run: Run, state: Any, budget: Budget) -> DraftTree:
        return DraftTree.from_paths(run.ids[-1], [[run.lm.vocab_size - 1]], "unlikely")


def test_the_fused_tree_is_worth_both_on_a_text_that_copies() -> None:
    """Rounds for the same text: a fused tree holds the tree of either, so it needs no more rounds than the better."""
    model = segue.model(dtype="float32")
    prompt = "One, two, three, four, five, six. One, two, three, four, five, six. One, two,"
    model_tree = DraftModel(draft="mini-draft", gamma=4)
    rates = {}
    for name, method in (
        ("draft_model", model_tree),
        ("prompt_lookup", PromptLookup()),
        ("rasd", Rasd(model=model_tree, retrieval=PromptLookup())),
    ):
        rates[name] = model.generate(prompt, method, max_tokens=64, ignore_eos=True).stats.tokens_per_forward
    print(f"tokens per forward: {rates}")
    assert rates["rasd"] >= max(rates["draft_model"], rates["prompt_lookup"])


@pytest.mark.parametrize("retrieval", [TokenRecycling(nodes=12), Aded(iterations=30), PromptLookup()])
def test_any_two_drafters_are_fused(retrieval: Any) -> None:
    world = network_world("qwen3")
    method = Rasd(model=MultiCandidate(draft=neighbour(world.lm), candidates="2,1"), retrieval=retrieval)
    assert same_tokens(method, world.lm, world.oracle, world.prompts, Settings(max_tokens=20)).tokens > 120


@dataclass(frozen=True)
class Known(PromptLookup):
    """Retrieves what the model is going to say."""

    answer: Any = ()

    def propose(self, run: Run, state: Any, budget: Budget) -> DraftTree:
        said = len(run.ids) - run.prompt_length
        return DraftTree.from_paths(run.ids[-1], [self.answer[said : said + min(6, budget.depth)]], "known")


@pytest.mark.parametrize("draft", ["another model", "the model itself"])
def test_a_planned_depth_is_that_of_the_model_and_not_of_retrieval(
    draft: str, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft model that is always wrong is asked no more, though all that is retrieved is right, and that stays as
    long as it was. One that is right is asked for long drafts, though what is retrieved is wrong."""
    world, settings = network_world("qwen3"), Settings(max_tokens=72, ignore_eos=True)
    monkeypatch.setattr(Run, "step_seconds", lambda run, rows: 1.0 + 0.01 * (rows - 1))
    prompt = list(world.prompts[1])
    expected = world.oracle.answer(prompt, settings).tokens
    wrong = draft == "another model"
    small = network_world("gpt2").lm if wrong else neighbour(world.lm)
    if not wrong:
        small.network.load_state_dict(world.lm.network.state_dict())  # type: ignore[attr-defined]
    monkeypatch.setattr(type(DraftModel()), "price", lambda method, run, tokens: 0.3 * tokens)
    heard = listen(small)
    retrieval = Known(answer=tuple(expected) if wrong else (0,) * 90)
    method = Rasd(model=DraftModel(draft=small, gamma=8), retrieval=retrieval, top_k=96, budget="gain")
    (answer,) = decode(world.lm, method, [prompt], settings)
    assert answer.tokens == expected
    stats = answer.stats
    print(f"{draft}: {stats.tokens / stats.rounds:.2f} tokens a round, {len(heard.trees)} draft forwards")
    if wrong:
        assert stats.tokens / stats.rounds > 5
        assert len(heard.trees) < 40  # 77 where its depth followed what was retrieved
    else:
        assert stats.tokens / stats.rounds > 3  # 1.5 there


def test_the_draft_model_drafts_from_the_text_when_retrieval_was_right(listen: Listen) -> None:
    """Where a retrieved branch was accepted, the draft forgets what it had read of its own."""
    world = network_world("qwen3")
    draft = neighbour(world.lm)
    heard = listen(draft)
    text = list(world.prompts[1]) * 2
    method = Rasd(model=DraftModel(draft=draft, gamma=3), retrieval=PromptLookup(), top_k=96)
    (answer,) = decode(world.lm, method, [text], Settings(max_tokens=60))
    whole = [*text, *answer.tokens]
    replaced = 0
    for past, tree in zip(heard.pasts, heard.trees, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(past, whole, strict=False)) if a != b), len(past))
        assert len(past) - same <= 2  # at most what it drafts right now
        replaced += len(tree) > 1 and bool(past)
    assert replaced > 0  # tokens of another drafter were read


class Ear(TokenRecycling):
    """Token recycling that says how many likeliest tokens it was shown."""

    def observe(self, run: Any, state: Any, outcome: Outcome) -> None:
        assert outcome.scores.topk is not None
        assert outcome.scores.topk.shape[1] == self.width
        super().observe(run, state, outcome)


def test_every_drafter_sees_its_own_number_of_likeliest_tokens() -> None:
    """Two matrices of unlike width in one round, as rasd and auto hold them; each is what it would be alone."""
    world, settings = network_world("gpt2"), Settings(max_tokens=16)
    both = Ear(width=2), Ear(width=5)
    methods = [Rasd(model=a, retrieval=b) for a, b in (both, both[::-1])]
    methods += [Rasd(model=Rasd(model=both[0], retrieval=PromptLookup()), retrieval=both[1])]
    for method in (*methods, segue.method("auto", drafters=(TokenRecycling(width=2), Wide()))):
        world.lm.reset_stores()
        (answer,) = decode(world.lm, method, [world.prompts[1]], settings)
        assert answer.tokens == world.oracle.answer(world.prompts[1], settings).tokens
        matrix = world.lm.stores["token_recycling:2"]
        assert matrix.shape[1] == 2
        assert (matrix >= 0).any()


def test_states_that_one_asked_for_are_not_taken_for_the_others() -> None:
    """Clasp looks for all layers' states, and only in some rounds; dresd has the last one computed in every round."""
    world, settings = network_world("llama"), Settings(max_tokens=24)
    looking = segue.method("dresd", **dense(world.lm))
    for method in (
        Rasd(model=Clasp(interval=2, gamma=2), retrieval=looking),
        segue.method("auto", drafters=(Clasp(interval=2, gamma=2), looking)),
    ):
        (answer,) = decode(world.lm, method, [world.prompts[1]], settings)
        assert answer.tokens == world.oracle.answer(world.prompts[1], settings).tokens


class Wide(PromptLookup):
    """Wants more likeliest tokens than anybody else."""

    needs = Want(topk=7)


class Zero(PromptLookup):
    """Always retrieves token 0."""

    def propose(self, run: Any, state: Any, budget: Any) -> DraftTree:
        return DraftTree.chain([run.ids[-1], 0])


class AsDrawn(Rasd):
    """Retrieved tokens that are verified as if they had been drawn."""

    def propose(self, run: Any, state: Any, budget: Any) -> Any:
        tree = yield from super().propose(run, state, budget)
        tree.sampled = [tree.parents[node] in tree.q for node in range(len(tree))]
        return tree


def test_samples_follow_the_model_and_a_wrong_rule_does_not() -> None:
    world = toy_world(3)
    settings = Settings(temperature=1.0, max_tokens=3)
    law = world.oracle.law([0, 1, 0, 1], settings)  # type: ignore[attr-defined]

    def apart(cls: type) -> float:
        method = cls(model=DraftModel(draft=neighbour(world.lm), gamma=1), retrieval=Zero(), top_k=3)
        found = distribution(world.lm, method, [0, 1, 0, 1], settings, 200_000)
        assert found.accepting
        return total_variation(found.p, law)

    assert apart(Rasd) < 1e-6
    assert apart(AsDrawn) > 1e-3


def test_what_cannot_be_fused_says_so() -> None:
    world = network_world("llama")
    with pytest.raises(ValueError, match=r"model='draft_model' is no drafter: make rasd with segue\.method"):
        decode(world.lm, Rasd(), [[1, 2]], Settings(max_tokens=4))
    method = Rasd(model=DraftModel(draft=world.lm), retrieval=Lookahead())
    with pytest.raises(ValueError, match="only read back cannot be merged in"):
        decode(world.lm, method, [[1, 2, 3]], Settings(max_tokens=4))
    built = segue.method("rasd", draft=world.lm, retrieval="token_recycling")
    assert isinstance(built.model, DraftModel)
    assert built.model.draft is world.lm
    assert isinstance(built.retrieval, TokenRecycling)
    with pytest.raises(ValueError, match="top_k=0 is not allowed: at least 1"):
        Rasd(top_k=0)
    with pytest.raises(ValueError, match="retrieved=0 is not allowed: at least 1"):
        Rasd(retrieved=0)


def test_what_is_kept_of_the_retrieved_is_no_size_of_a_held_drafters_tree() -> None:
    """Names of fields that both have are handed on: a size that means another thing must have another name."""
    built = segue.method("rasd", retrieved=7, retrieval="token_recycling")
    assert (built.retrieved, built.retrieval.nodes) == (7, TokenRecycling().nodes)
    with pytest.raises(ValueError, match="rasd has no field 'nodes'"):
        segue.method("rasd", nodes=7)


def test_a_store_reaches_the_drafter_that_reads_it() -> None:
    assert segue.method("rasd", retrieval="rest", index="folder").retrieval.index == "folder"
    assert segue.method("rasd", retrieval="aded", table="file").retrieval.table == "file"
    object_with_its_own = segue.method("rasd", model="token_recycling", retrieval=segue.method("rest", index="folder"))
    assert object_with_its_own.retrieval.index == "folder"
    lm = network_world("llama").lm
    for fields, name in (
        ({"index": "there"}, "index"),
        ({"retrieval": "aded", "index": "there"}, "index"),
        ({"retrieval": "rest", "table": "there"}, "table"),
    ):
        method = segue.method("rasd", draft=lm, **fields)
        assert f"{name}='there' is given, and no drafter here reads one" in method.lacks(lm)
        with pytest.raises(ValueError, match=f"{name}='there' is given"):
            decode(lm, method, [[1, 2, 3]], Settings(max_tokens=4))
