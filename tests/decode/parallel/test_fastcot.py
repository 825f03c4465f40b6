from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from segue.bench.suites import suite as prompts_of
from segue.card import Limit
from segue.data import Completion, Settings
from segue.decode.parallel.fastcot import FastCoT
from segue.decode.plain import Plain
from segue.decode.speculative.budget import CONTROLLERS
from segue.laws import suite
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.less_work import less_work
from segue.laws.limit import limit
from segue.laws.oracle import NetworkOracle
from segue.laws.same_tokens import same_tokens
from segue.laws.worlds import World, neighbour, network_world, toy_world
from segue.models.lm import LM
from segue.models.run import Run
from segue.models.source import EMBEDDED
from segue.models.transformers.lm import TransformersLM
from segue.models.transformers.load import load, wrap

Listen = Callable[[LM], Any]
CUE = "\nSo the answer is"

the_world = functools.cache(network_world)


@dataclass(frozen=True)
class Real:
    """The embedded model, grade-school problems, and transformers."""

    lm: TransformersLM
    oracle: NetworkOracle
    prompts: list[list[int]]
    cue: list[int]


@pytest.fixture(scope="module")
def real() -> Real:
    lm = load(dtype="float32")
    network = AutoModelForCausalLM.from_pretrained(EMBEDDED / "mini", dtype=torch.float32).eval()
    spec = prompts_of("spec")
    texts = [text for kind, text in zip(spec.kinds, spec.prompts, strict=True) if kind == "maths"]
    return Real(lm, NetworkOracle(lm, network), [lm.encode(text) for text in texts], lm.encode(CUE, special=False))


def parts(answer: Completion) -> tuple[int, int, int]:
    """How many settled, approximate and cue tokens stand before the answer, by the method's own words."""
    found = re.fullmatch(
        r"answers after (\d+) settled and (\d+) approximate tokens and a cue of (\d+)", answer.stats.note
    )
    assert found, answer.stats.note
    settled, approximate, cue = map(int, found.groups())
    return settled, approximate, cue


@pytest.mark.parametrize("window", [0, 1, 6, 40])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2", "qwen3"])
def test_without_the_glance_it_writes_what_transformers_writes(family: str, window: int) -> None:
    report = suite._same_tokens(FastCoT(glance=False, share=0.2, window=window), the_world(family))
    assert report.tokens > 200
    assert len(report.near_ties) <= 2


@pytest.mark.parametrize("method", [FastCoT(glance=False, share=0.3), FastCoT(share=1.0, cue="", window=3)])
def test_where_nothing_is_cut_samples_follow_the_model(method: FastCoT) -> None:
    assert suite._same_distribution(method, toy_world(3, 2))


@dataclass(frozen=True)
class Hasty(FastCoT):
    """Ends the rationale at half of its share."""

    def _is_over(self, run: Run, cue: int) -> bool:
        return bool(run.output) and run.remaining > cue and run.stats.target_forwards >= self.share * run.max_tokens / 2


def test_a_share_that_never_reaches_the_end_is_found() -> None:
    world = toy_world(2)
    cases = [
        (lm, world.prompts[-1], Settings(temperature=1.0, max_tokens=8)) for lm in (world.lm, neighbour(world.lm, 2))
    ]
    promise = Limit(knob="share", exact_at=1.0)
    means = limit(lambda lm, share: FastCoT(share=share, cue=""), promise, cases)
    print(f"divergence by share: {means}")
    assert means[0] > 0.1
    with pytest.raises(LawBroken, match="should be exact"):
        limit(lambda lm, share: Hasty(share=share, cue=""), promise, cases)


def test_the_text_is_rationale_window_cue_and_answer(real: Real) -> None:
    """The rationale is transformers' own; the answer is what transformers writes behind all that stands before it."""
    settings = Settings(max_tokens=44)
    answers = decode(real.lm, FastCoT(share=0.5, window=8), real.prompts[:10], settings)
    for prompt, answer in zip(real.prompts, answers, strict=False):
        settled, approximate, cue = parts(answer)
        assert 22 <= settled < 36
        assert cue == len(real.cue)
        rationale, between, rest = (
            answer.tokens[:settled],
            answer.tokens[settled : settled + approximate + cue],
            answer.tokens[settled + approximate + cue :],
        )
        assert rationale == real.oracle.answer(prompt, settings).tokens[:settled]
        assert between[approximate:] == real.cue
        expected = real.oracle.answer([*prompt, *rationale, *between], Settings(max_tokens=len(rest)))
        assert rest == expected.tokens
        assert CUE in answer.text
    assert any(0 < parts(answer)[1] < 8 for answer in answers)  # a round that kept guesses leaves fewer
    assert max(parts(answer)[1] for answer in answers) == 8


def test_a_batch_gives_what_each_gives_alone(real: Real) -> None:
    method, settings = FastCoT(share=0.4, window=8), Settings(max_tokens=30)
    together = decode(real.lm, method, real.prompts[:6], settings)
    alone = [decode(real.lm, method, [prompt], settings)[0] for prompt in real.prompts[:6]]
    assert [(a.tokens, a.stats.note) for a in together] == [(a.tokens, a.stats.note) for a in alone]


@pytest.mark.parametrize(("share", "tokens"), [(0.25, 24), (0.5, 24), (0.5, 9), (0.01, 24)])
def test_the_rationale_takes_its_share_of_the_calls(share: float, tokens: int, listen: Listen) -> None:
    world = the_world("llama")  # where next to no guess is right
    heard = listen(world.lm)
    method = FastCoT(share=share, window=6, cue="")
    (answer,) = decode(world.lm, method, [world.prompts[1]], Settings(max_tokens=tokens))
    settled, approximate, _ = parts(answer)
    calls = max(int(share * tokens), 1)
    rest = tokens - settled - approximate
    assert len(heard.trees) == calls + rest == answer.stats.target_forwards
    # All of the rationale's calls but the first and, at the end of the room, some, have the whole window.
    assert all(len(tree) == min(7, tokens - len(past) + len(world.prompts[1]) - 1)
               for tree, past in zip(heard.trees[1:calls], heard.pasts[1:calls], strict=True))  # fmt: skip
    assert len(heard.trees[calls]) == 1 + approximate
    # What no row has spoken of is not handed over.
    assert (approximate > 0) == (calls > 1)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_the_window_is_what_the_model_says_after_its_guesses(penalty: float, listen: Listen) -> None:
    world = the_world("llama")
    heard = listen(world.lm)
    prompt = world.prompts[2]
    settings = Settings(max_tokens=20, repetition_penalty=penalty)
    (answer,) = decode(world.lm, FastCoT(share=0.4, window=6, cue=""), [prompt], settings)
    settled, approximate, _ = parts(answer)
    ((past, tree),) = [(heard.pasts[7], heard.trees[7])]  # the last of the eight calls
    path = len(prompt) + settled - len(past) - 2
    expected = []
    for node in range(path, len(tree)):
        (token,) = world.oracle.answer([*past, *tree.tokens[: node + 1]], replace(settings, max_tokens=1)).tokens
        expected.append(token)
    # The first is the last settled token, the rest the glance.
    assert answer.tokens[settled - 1 : settled + approximate] == expected
    assert approximate >= 4


def test_without_guesses_it_is_plain_decoding_up_to_the_cue(real: Real) -> None:
    (answer,) = decode(real.lm, FastCoT(share=0.5, window=0), real.prompts[:1], Settings(max_tokens=30))
    assert parts(answer) == (15, 0, len(real.cue))
    assert answer.stats.target_forwards - answer.stats.prefill_forwards + 1 == 30 - len(real.cue)


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_a_number_of_tokens_ends_the_rationale(limit: int, real: Real) -> None:
    method = FastCoT(share=1.0, rationale_tokens=limit)
    for answer in decode(real.lm, method, real.prompts[:6], Settings(max_tokens=30)):
        assert parts(answer)[:2] == (limit, 0)  # the window ends where the rationale does


def test_a_phrase_ends_the_rationale_and_nothing_approximate_follows(real: Real) -> None:
    settings = Settings(max_tokens=40)
    prompt = real.prompts[1]
    plain = real.lm.decode(real.oracle.answer(prompt, settings).tokens)
    phrase = plain[20:26]
    (answer,) = decode(real.lm, FastCoT(share=1.0, stop_phrase=phrase), [prompt], settings)
    settled, approximate, _ = parts(answer)
    assert approximate == 0
    before = real.lm.decode(answer.tokens[:settled])
    assert plain.startswith(before)
    assert phrase in before
    assert answer.text.startswith(before + CUE)


def test_a_model_that_writes_the_cue_itself_is_left_alone(real: Real) -> None:
    settings = Settings(max_tokens=40)
    expected = real.oracle.answer(real.prompts[1], settings).tokens
    plain = real.lm.decode(expected)
    # The first token is there after the first call, before any budget ends.
    (answer,) = decode(real.lm, FastCoT(share=0.3, cue=plain[:3]), [real.prompts[1]], settings)
    assert (answer.tokens, answer.stats.note) == (expected, "")


def test_the_glance_ends_before_an_end_of_text(world: World) -> None:
    prompt, settings = world.prompts[2], Settings(max_tokens=20)
    method = FastCoT(share=0.4, window=6, cue="")
    (whole,) = decode(world.lm, method, [prompt], settings)
    settled, approximate, _ = parts(whole)
    guesses = whole.tokens[settled : settled + approximate]
    place, end = next((i, t) for i, t in enumerate(guesses) if i and t not in whole.tokens[: settled + i])
    with ending_at(world.lm, frozenset([end])):
        (answer,) = decode(world.lm, method, [prompt], settings)
    assert parts(answer)[:2] == (settled, place)
    assert answer.tokens[: settled + place] == whole.tokens[: settled + place]


def test_bans_and_least_lengths_hold_for_the_glance_too() -> None:
    world = the_world("llama")
    prompt, method = world.prompts[2], FastCoT(share=0.4, window=6, cue="")
    (free,) = decode(world.lm, method, [prompt], Settings(max_tokens=20))
    settled, approximate, _ = parts(free)
    for banned in set(free.tokens[settled : settled + approximate]):
        settings = Settings(max_tokens=20, logit_bias={banned: -1000.0})
        (answer,) = decode(world.lm, method, [prompt], settings)
        assert parts(answer)[1] > 0
        assert banned not in answer.tokens
    end = next(t for t in free.tokens[settled : settled + approximate] if t not in free.tokens[:settled])
    with ending_at(world.lm, frozenset([end])):
        (answer,) = decode(world.lm, method, [prompt], Settings(max_tokens=20, min_tokens=20))
    assert end not in answer.tokens
    assert parts(answer)[1] == approximate


@pytest.mark.parametrize("budget", CONTROLLERS)
def test_a_window_that_a_controller_cuts_changes_no_settled_token(budget: str) -> None:
    world = the_world("gpt2")
    settings = Settings(max_tokens=24)
    for method in (FastCoT(glance=False, budget=budget), FastCoT(share=0.3, cue="", budget=budget)):
        for prompt, answer in zip(world.prompts, decode(world.lm, method, world.prompts, settings), strict=True):
            settled = parts(answer)[0] if answer.stats.note else 24
            assert answer.tokens[:settled] == world.oracle.answer(prompt, settings).tokens[:settled]


def test_where_there_is_no_room_for_an_answer_the_rationale_goes_on(real: Real) -> None:
    room = len(real.cue)
    for extra in (0, 1, 2, 3):
        settings = Settings(max_tokens=1 + room + extra)
        (answer,) = decode(real.lm, FastCoT(share=0.01), real.prompts[:1], settings)
        if extra == 0:
            assert answer.tokens == real.oracle.answer(real.prompts[0], settings).tokens
        else:
            assert parts(answer) == (1, 0, room)
            assert len(answer.tokens) == settings.max_tokens


def test_log_probabilities_are_those_of_the_text_as_it_stands(real: Real) -> None:
    prompt = real.prompts[0]
    (answer,) = decode(real.lm, FastCoT(share=0.4, window=5), [prompt], Settings(max_tokens=24, logprobs=0))
    assert answer.logprobs is not None
    assert parts(answer)[1] > 0
    for place, entry in enumerate(answer.logprobs):
        logits = real.oracle.answer([*prompt, *answer.tokens[:place]], Settings(max_tokens=1)).logits[0]
        assert entry.token == answer.tokens[place]
        assert entry.logprob == pytest.approx(float(logits.double().log_softmax(-1)[entry.token]), abs=1e-3)


def test_stop_strings_and_samples_work_behind_the_cue(real: Real) -> None:
    settings = Settings(max_tokens=30, stop=("answer",))
    (answer,) = decode(real.lm, FastCoT(share=0.3), real.prompts[:1], settings)
    assert answer.finish_reason == "stop"
    assert answer.text.endswith("\nSo the ")
    settings = Settings(max_tokens=40, temperature=1.0, seed=3)
    (first,), (again,) = (decode(real.lm, FastCoT(share=0.3), real.prompts[:1], settings) for _ in range(2))
    assert first.tokens == again.tokens
    settled = parts(first)[0]
    (plain,) = decode(real.lm, Plain(), real.prompts[:1], settings)
    assert first.tokens[:settled] == plain.tokens[:settled]


def test_calls_are_fewer_than_tokens(real: Real, world: World) -> None:
    stats = less_work(FastCoT(glance=False), world.lm, suite.repetitive(world))
    print(f"random network: {stats.tokens_per_forward:.2f} tokens per forward")
    calls = tokens = 0
    prompts = real.prompts[::2]
    report = same_tokens(FastCoT(glance=False), real.lm, real.oracle, prompts, Settings(max_tokens=40), batch=False)
    for method in (FastCoT(glance=False), FastCoT(share=0.5)):
        answers = decode(real.lm, method, prompts, Settings(max_tokens=40))
        calls = sum(a.stats.target_forwards - a.stats.prefill_forwards + 1 for a in answers)
        tokens = sum(len(a.tokens) for a in answers)
        print(f"glance {method.glance}: {tokens} tokens in {calls} calls ({tokens / calls:.2f})")
        assert calls < tokens
    assert not report.near_ties


def test_what_cannot_be_is_refused(world: World) -> None:
    for values, message in (
        ({"share": 0.0}, "share=0.0 is not allowed"),
        ({"share": 1.5}, "share=1.5 is not allowed"),
        ({"window": -1}, "window=-1 is not allowed"),
        ({"rationale_tokens": -1}, "rationale_tokens=-1 is not allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            FastCoT(**values)
    with pytest.raises(ValueError, match="has none: leave both empty"):
        decode(world.lm, FastCoT(), [world.prompts[0]], Settings(max_tokens=4))


DIGITS, TERMS, BASE = "0123456789.:=", 12, 5


def problems(generator: torch.Generator, count: int) -> torch.Tensor:
    """(count, 28) token ids of problems with rationale and answer: twelve digits d, ":", twelve digits r, "=", r_8 r_10
    and ".". For even i r_i = d_i + 3, which can be told from the problem; for odd i it is r_(i-1) + r_(i-2), a chain
    that has to be gone through step by step. All modulo 5."""
    d = torch.randint(BASE, (count, TERMS), generator=generator)
    r = torch.zeros_like(d)
    for i in range(TERMS):
        r[:, i] = (d[:, i] + 3) % BASE if i % 2 == 0 else (r[:, i - 1] + (r[:, i - 2] if i > 1 else 1)) % BASE
    sign = {c: torch.full((count, 1), DIGITS.index(c)) for c in ".:="}
    return torch.cat([d, sign[":"], r, sign["="], r[:, [8, 10]], sign["."]], 1)


@pytest.fixture(scope="module")
def reasoner() -> TransformersLM:
    """A network of 0.1 million weights that has learned the problems in some ten seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(DIGITS), n_embd=64, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=None, eos_token_id=DIGITS.index("."),
        )  # fmt: skip
        network = GPT2LMHeadModel(config)
    steps, generator = 600, torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        ids = problems(generator, 64)
        logits = network(ids[:, :-1]).logits[:, TERMS:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, TERMS + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if loss < 5e-3:
            break
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(DIGITS)}, unk_token="."))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return wrap(network.eval(), PreTrainedTokenizerFast(tokenizer_object=words), name="reasoner")


def test_an_answer_from_a_glance_is_right_sooner(reasoner: TransformersLM) -> None:
    """Accuracy by calls, at 25, 50, 75 and 100% of those that plain decoding takes for the rationale: with the glance,
    and with the same settled rationale alone."""
    lm = reasoner
    ids = problems(torch.Generator().manual_seed(7), 200).tolist()
    prompts, right = [row[: TERMS + 1] for row in ids], [row[-3:-1] for row in ids]
    room = Settings(max_tokens=TERMS + 3, ignore_eos=True)
    assert [a.tokens for a in decode(lm, Plain(), prompts, room)] == [row[TERMS + 1 : -1] for row in ids]
    cue = DIGITS.index("=")
    curve = []
    for calls in (3, 6, 9, 12):
        method = FastCoT(share=(calls + 0.5) / room.max_tokens, window=TERMS, rationale_tokens=TERMS, cue="=")
        glances = decode(lm, method, prompts, room)
        cut = [parts(a) for a in glances]
        without = decode(
            lm,
            Plain(),
            [[*p, *a.tokens[:settled], cue] for p, a, (settled, _, _) in zip(prompts, glances, cut, strict=True)],
            Settings(max_tokens=2, ignore_eos=True),
        )
        answered = [a.tokens[sum(c) :][:2] for a, c in zip(glances, cut, strict=True)]
        shares = [sum(a == r for a, r in zip(found, right, strict=True)) / len(right)
                  for found in (answered, [a.tokens for a in without])]  # fmt: skip
        settled = sum(c[0] for c in cut) / len(cut)
        print(f"{calls} calls: {shares[0]:.0%} right with the glance, {shares[1]:.0%} without ({settled:.1f} settled)")
        curve.append(shares)
    assert all(glance >= without for glance, without in curve)
    assert curve[0][0] > 0.9 > 0.5 > curve[0][1]
    assert curve[1][0] > 0.9 > 0.6 > curve[1][1]
    assert curve[-1] == [1.0, 1.0]


def test_on_the_embedded_model_the_exact_share_gives_the_answer_of_the_whole_rationale(real: Real) -> None:
    """The model cannot do sums, so what is compared is the answer behind the whole rationale of 48 tokens. Nothing is
    promised on the way: the glance of such a small model is mostly wrong, and the figures are printed."""
    rationale, tokens = 48, 6
    room = Settings(max_tokens=rationale + len(real.cue) + tokens)
    whole = [real.oracle.answer(p, Settings(max_tokens=rationale)).tokens for p in real.prompts]
    chosen = [(p, w) for p, w in zip(real.prompts, whole, strict=True) if len(w) == rationale]
    assert len(chosen) >= 20
    expected = [real.oracle.answer([*p, *w, *real.cue], Settings(max_tokens=tokens)).tokens for p, w in chosen]
    prompts = [p for p, _ in chosen]
    for share in (0.25, 0.5, 0.75, 1.0):
        method = FastCoT(share=(share * rationale + 0.5) / room.max_tokens, window=8, rationale_tokens=rationale)
        glances = decode(real.lm, method, prompts, room)
        cut = [parts(a) for a in glances]
        alone = decode(
            real.lm,
            Plain(),
            [[*p, *a.tokens[: c[0]], *real.cue] for p, a, c in zip(prompts, glances, cut, strict=True)],
            Settings(max_tokens=tokens),
        )
        equal = [
            sum(found == e for found, e in zip(answers, expected, strict=True)) / len(expected)
            for answers in (
                [a.tokens[sum(c) :][:tokens] for a, c in zip(glances, cut, strict=True)],
                [a.tokens for a in alone],
            )
        ]
        print(f"{share:.0%} of the calls: {equal[0]:.0%} of the answers with the glance, {equal[1]:.0%} without")
    assert equal == [1.0, 1.0]
