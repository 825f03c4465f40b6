"""The laws that a method's card selects, run in one world."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from segue import catalog
from segue.card import Card, Learned, Limit, SameDistribution, SameTarget, SameTokens
from segue.catalog import TRAINED, TUNED
from segue.data import Settings
from segue.decode.speculative.base import Speculative
from segue.laws.base import LawBroken
from segue.laws.datastore import dense, suffix, trigram
from segue.laws.drafters import pupil
from segue.laws.edges import edges, ending_at
from segue.laws.less_work import less_work
from segue.laws.limit import limit
from segue.laws.oracle import TableOracle
from segue.laws.same_distribution import as_far_as
from segue.laws.same_target import same_target
from segue.laws.same_tokens import Compared, same_tokens
from segue.laws.tuned import tuned
from segue.laws.worlds import World, neighbour
from segue.models.lm import LM
from segue.models.method import Method
from segue.models.tuning import TUNINGS
from segue.ops.automaton import Avoid, Phrases

# What a need on a card is met with, given the target: the values of the fields that name it.
Companions = Mapping[str, Callable[[LM], dict[str, Any]]]
WORDLESS: Companions = {"a tokenizer": lambda lm: {"cue": ""} if lm.tokenizer is None else {}}
SHORT: Companions = {"a long prompt": lambda lm: {"keep": 2, "queries": 2}}  # what is long beside the laws' prompts
# Prompts of the laws are ids: their first token is the instruction, and another one takes its place.
INSTRUCTED: Companions = {"an instruction": lambda lm: {"instruction": 1, "noisy": (1,)}}
# A drafter that was hardly trained for the laws of what is kept and refused, and one that knows the text.
STORES: Companions = {"a datastore": suffix, "a dense datastore": dense, "a trigram table": trigram}
ORDINARY: Companions = {
    "a draft model": lambda lm: {"draft": neighbour(lm)},
    **{TUNED + kind: lambda lm: {"mask": 0} for kind in TUNINGS},
    TRAINED: lambda lm: {"lessons": 10},
    **STORES,
    **WORDLESS,
    **SHORT,
    **INSTRUCTED,
}
IDEAL: Companions = {
    "a draft model": lambda lm: {"draft": lm},
    TRAINED: lambda lm: {"lessons": 150},
    **STORES,
    **WORDLESS,
    **INSTRUCTED,
}  # saves the most forwards

SAMPLED = (
    Settings(temperature=1.0),
    Settings(temperature=0.7, top_p=0.8),
    Settings(temperature=1.3, top_k=2, repetition_penalty=1.4),
    # transformers keeps biases in float32, hence one that is exact there.
    Settings(temperature=0.9, min_p=0.1, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={1: 0.75}),
    Settings(temperature=1.0, typical_p=0.7, min_tokens=2),
)
TOKENS = 20  # greedy tokens per prompt
BRANCHES = 80  # an enumeration with more is the last of its settings


def check(
    method: str | type, world: World, *, companions: Companions = ORDINARY, ideal: Companions = IDEAL
) -> dict[str, Any]:
    """Run what the card promises and this world can show; returns the reports by the name of the promise.

    `method`: a name of the catalog, or a class with a card. `companions` meet the needs of the card, and `ideal` those
    of the law that counts forwards.
    """
    cls = load(method)
    card: Card = cls.card
    ran: dict[str, Any] = {}
    for promise in card.exact:
        name = type(promise).__name__
        if isinstance(promise, SameTokens):
            ran[name] = _same_tokens(build(cls, world.lm, companions), world)
            if not isinstance(world.oracle, TableOracle) and issubclass(cls, Speculative) and not iterates(cls):
                best = _at_its_best(card, world)
                ran["less work"] = less_work(build(cls, best.lm, ideal), best.lm, repetitive(best))
        elif isinstance(promise, SameDistribution) and isinstance(world.oracle, TableOracle):
            ran[name] = _same_distribution(build(cls, world.lm, companions), world)
        elif isinstance(promise, Limit):
            if not any(isinstance(other, SameTokens) for other in card.exact):
                ran["SameTokens"] = _same_tokens(build(cls, world.lm, companions, **_exact(promise)), world)
            if isinstance(world.oracle, TableOracle):
                ran[name] = _limit(cls, promise, world, companions)
        elif isinstance(promise, SameTarget):
            ran[name] = same_target(promise, build(cls, world.lm, companions), world)
            if not isinstance(world.oracle, TableOracle) and issubclass(cls, Speculative):
                ran["less work"] = less_work(build(cls, world.lm, ideal), world.lm, repetitive(world))
        elif isinstance(promise, Learned):
            raise LawBroken(f"{cls.__name__} promises {name}, and there is no law for it yet")
    return ran


def _at_its_best(card: Card, world: World) -> World:
    """The world, or, for a method that needs a model of its own, one whose model was tuned for it."""
    kind = next((need.removeprefix(TUNED) for need in card.needs if need.startswith(TUNED)), None)
    return world if kind is None else tuned(world.lm.name.split("-")[1], kind)


def load(method: str | type) -> Any:
    """The class of a method."""
    if isinstance(method, type):
        return method
    entry = catalog.find(method)
    return getattr(importlib.import_module(entry.module), entry.class_name)


def iterates(cls: type) -> bool:
    """Guesses that are iterations of the model do not profit from a repetitive text, least of all with random weights:
    the tests of these methods show what they save, and where."""
    return cls.__module__.startswith("segue.decode.parallel.")


def build(cls: Any, lm: LM, companions: Companions, **values: Any) -> Method:
    """A method object for a model, its needs met."""
    for need in cls.card.needs:
        if need in companions:
            values |= companions[need](lm)
    if "lessons" in values:
        values["heads"] = pupil(lm, cls.network, values.pop("lessons"))
    entry = catalog.entries().get(cls.__module__.rpartition(".")[2])
    # The catalog makes what a user would get: a method that chooses among others is given them there.
    own = entry is not None and (entry.module, entry.class_name) == (cls.__module__, cls.__name__)
    method: Method = catalog.build(entry.name, **values) if entry is not None and own else cls(**values)
    return method


def refused(method: str, lacking: Collection[str]) -> bool:
    """Whether a method's card needs something that a backend or a kind of model does not have."""
    return bool(set(catalog.find(method).card.needs) & set(lacking))


def repetitive(world: World) -> list[int]:
    """A prompt with its own greedy continuation: the model goes on as it did."""
    prompt = world.prompts[0]
    return [*prompt, *world.oracle.answer(prompt, Settings(max_tokens=24, ignore_eos=True)).tokens]


def _same_tokens(method: Method, world: World) -> Compared:
    report = same_tokens(method, world.lm, world.oracle, world.prompts, Settings(max_tokens=TOKENS))
    for edge in edges(world.lm, world.oracle, repetitive(world)):
        with ending_at(world.lm, edge.eos):
            try:
                report += same_tokens(method, world.lm, world.oracle, [edge.prompt], edge.settings, batch=False)
            except Exception as error:
                error.add_note(f"at the edge {edge.name!r}")
                raise
    return report


def _same_distribution(method: Method, world: World) -> list[Any]:
    seen = []
    for settings in (*SAMPLED, *_constrained(world.lm)):
        seen += as_far_as(BRANCHES, method, world.lm, world.prompts[-1], settings)
    tested = any(s.accepting for s in seen) and any(s.refusing for s in seen)
    if isinstance(method, Speculative) and not tested:
        raise LawBroken(f"no branch of {method} kept (or none refused) a drafted token: nothing was put to the test")
    return seen


def _constrained(lm: LM) -> list[Settings]:
    """Samples of texts with a phrase, and of texts without one."""
    ordinary = [token for token in range(lm.vocab_size) if token not in lm.eos_ids]
    demanded = Phrases(lm.vocab_size, lm.eos_ids, [(ordinary[1], ordinary[0])])
    banned = Avoid(lm.vocab_size, lm.eos_ids, [(ordinary[0], ordinary[0]), (ordinary[1],) * 3])
    return [Settings(temperature=1.0, constraint=demanded), Settings(temperature=0.8, top_k=2, constraint=banned)]


def _exact(promise: Limit) -> dict[str, Any]:
    """The knob where the method is exact; elsewhere it need not be."""
    return {promise.knob: promise.exact_at}


def _limit(cls: Any, promise: Limit, world: World, companions: Companions) -> list[float]:
    # An iteration that may end early needs tokens to end it in; every drawn draft multiplies the branches, and so many
    # tokens of more than two kinds do: one model must do there.
    settings = Settings(temperature=1.0, max_tokens=8 if iterates(cls) else 3)
    lms = [world.lm]
    if world.lm.vocab_size == 2 or not iterates(cls):
        lms += [neighbour(world.lm, 2), neighbour(world.lm, 3)]
    cases = [(lm, world.prompts[-1], settings) for lm in lms]
    # A knob of a draft model acts only on drafts that the draft model is not sure about.
    return limit(lambda lm, value: build(cls, lm, companions, **{promise.knob: value}), promise, cases)
