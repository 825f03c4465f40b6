"""Grammars by llguidance: outputs are judged by `re` and `jsonschema`, greedy texts by transformers' own generate."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import transformers as tf
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

import segue
from segue.api import Model, make_settings
from segue.data import Automaton, CapabilityError, ConstraintError
from segue.laws.suite import build, load
from segue.models.constraint import Constraint, constraint
from segue.models.grammar import grammar, source
from segue.models.transformers.load import wrap
from tests.models.llamacpp.vocabularies import KINDS, make

DATA = Path(__file__).parents[1] / "data" / "json_schemas.jsonl"
SCHEMAS = [json.loads(line) for line in DATA.read_text().splitlines()]
PERSON = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
                   "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3}},
    "required": ["kind", "age", "tags"],
    "additionalProperties": False,
}  # fmt: skip
METHODS = [
    "plain",
    "prompt_lookup",
    "token_recycling",
    "lookahead",
    "draft_model",
    "recursive",
    "staged",
    "multi_candidate",
]


def tiny(tokenizer: Any, padding: int = 5, seed: int = 0) -> tuple[Model, Any]:
    """A random network with more rows than tokens, and an untouched twin."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    end = tokenizer.eos_token_id
    config = tf.LlamaConfig(vocab_size=len(tokenizer) + padding, eos_token_id=end, pad_token_id=end, **sizes)
    torch.manual_seed(seed)
    network = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        network.lm_head.weight.mul_(40)  # so that texts depend on what was before
    twin = copy.deepcopy(network)
    return Model(wrap(network, tokenizer, name="tiny")), twin


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(segue.model(dtype="float32").lm.tokenizer)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_every_kind_write_what_matches(kind: str) -> None:
    lm, _ = tiny(make(kind))
    pattern = r"[a-z]{2,5} ?(é|日本|\n)[0-9]{1,3}( [A-Z]+)*"
    for seed in range(3):
        out = lm.generate("The house", "plain", regex=pattern, max_tokens=40, temperature=1.5, seed=seed)
        assert re.fullmatch(pattern, out.text), out.text
    schema = lm.generate("The house", "plain", json_schema=PERSON, max_tokens=80, temperature=1.5, seed=1)
    jsonschema.validate(json.loads(schema.text), PERSON)
    chosen = lm.generate("The house", "plain", choices=["yes", " no", "maybe é"], temperature=3.0, seed=2)
    assert chosen.text in ("yes", " no", "maybe é")


def test_json_of_the_test_suite_is_valid(model: Model) -> None:
    """None is ever invalid: what llguidance cannot follow is refused by name, what does not end in time is an error."""
    valid = refused = unfinished = 0
    for number, case in enumerate(SCHEMAS):
        schema = case["schema"]
        try:
            out = model.generate("JSON:", "plain", json_schema=schema, max_tokens=60, temperature=1.0, seed=number)
        except ConstraintError as error:
            assert "within max_tokens" in str(error) or "allows no token" in str(error)  # noqa: PT017
            unfinished += 1
        except ValueError as error:
            assert str(error).startswith("json_schema=")  # noqa: PT017
            assert "cannot be followed" in str(error) or "no text satisfies false" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert out.finish_reason in ("stop", "length")
            checker = jsonschema.Draft202012Validator(schema)
            try:
                assert checker.is_valid(json.loads(out.text)), (schema, out.text)
            except re.error:  # jsonschema reads patterns as Python does
                assert r"\\p{" in json.dumps(schema)
                continue
            valid += 1
    print(f"{valid} valid, {refused} refused, {unfinished} unfinished of {len(SCHEMAS)}")
    assert valid >= 100
    assert unfinished <= len(SCHEMAS) // 20


def test_invalid_documents_of_the_test_suite_are_not_accepted(model: Model) -> None:
    seen = 0
    for case in SCHEMAS:
        try:
            automaton = grammar(model.lm, "json_schema", case["schema"], model.lm.eos_ids)
        except ValueError:
            continue
        for document in case["invalid"]:
            state: Any = automaton.start()
            for token in model.lm.encode(json.dumps(document, separators=(",", ":")), special=False):
                state = None if state is None else automaton.step(state, token)
            assert state is None or not automaton.accepting(state), (case["schema"], document)
            seen += 1
    assert seen > 100


class Masks(tf.LogitsProcessor):  # type: ignore[misc]
    """llguidance for transformers, by its own reading of the tokenizer."""

    def __init__(self, tokenizer: Any, form: str, start: int, rows: int) -> None:
        self.reader = from_tokenizer(tokenizer, n_vocab=rows)
        self.form, self.start = form, start

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        matcher = LLMatcher(self.reader, self.form)
        assert matcher.consume_tokens(input_ids[0, self.start :].tolist())
        bias = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)[: scores.shape[-1]]
        return scores.masked_fill(bias == 0, float("-inf"))


@pytest.mark.parametrize("kind", ["mini", "llama-bpe", "always"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("json_schema", PERSON), ("regex", "(ab|c|[0-9]{2}){6}"), ("grammar", 'start: "x" ("y" | "zz")~5')],
)
def test_greedy_text_is_that_of_transformers_with_the_same_masks(kind: str, name: str, text: Any) -> None:
    tokenizer = segue.model(dtype="float32").lm.tokenizer if kind == "mini" else make(kind)
    lm, twin = tiny(tokenizer)
    ids = lm.encode("Once upon a time")
    masks = Masks(tokenizer, source(name, text), len(ids), lm.lm.vocab_size)
    prompt = torch.tensor([ids])
    theirs = twin.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=100,
                           logits_processor=tf.LogitsProcessorList([masks]))  # fmt: skip
    expected = theirs[0, len(ids) :].tolist()
    assert expected[-1] in lm.lm.eos_ids
    for method in ("plain", "prompt_lookup", "token_recycling"):
        assert lm.generate(ids, method, max_tokens=100, **{name: text}).tokens == expected


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_draft_gives_the_text_of_plain_decoding(model: Model, method: str) -> None:
    drafts = {"a draft model": lambda lm: {"draft": tiny(lm.tokenizer, seed=1)[0].lm}}
    made = build(load(method), model.lm, drafts)
    for settings in (
        {"json_schema": PERSON},
        {"regex": "([a-c]{3} ){2,9}x"},
        {"choices": ["one two", "one three", "four"]},
    ):
        prompts = ["one two one two one", '{"kind":"cat","age":12,"tags":["a"]}\n']
        expected = [model.generate(p, "plain", max_tokens=50, **settings).tokens for p in prompts]
        assert [a.tokens for a in model.generate(prompts, made, max_tokens=50, **settings)] == expected
        sampled = model.generate(prompts[0], made, max_tokens=50, temperature=1.0, seed=3, **settings)
        assert sampled.finish_reason == "stop"
        if method == "prompt_lookup":  # one uniform number a token, whatever was drafted
            plain = model.generate(prompts[0], "plain", max_tokens=50, temperature=1.0, seed=3, **settings)
            assert sampled.tokens == plain.tokens


def test_states_are_values(model: Model) -> None:
    """A state stays what it is, whatever is read after it and in whatever order: also when parsers were forgotten."""
    automaton = grammar(model.lm, "regex", "(ab|ba)*[0-9]+", model.lm.eos_ids)
    assert isinstance(automaton, Automaton)
    generator = torch.Generator().manual_seed(0)
    states, masks = [automaton.start()], [automaton.allowed(automaton.start())]
    for _ in range(60):
        at = int(torch.randint(len(states), (), generator=generator))
        options = masks[at].nonzero()[:, 0].tolist()
        if options:
            token = options[int(torch.randint(len(options), (), generator=generator))]
            after = automaton.step(states[at], token)
            assert after is not None
            states.append(after)
            masks.append(automaton.allowed(after))
    automaton._parsers.clear()
    automaton._masks.clear()
    for state, mask in reversed(list(zip(states, masks, strict=True))):
        assert torch.equal(automaton.allowed(state), mask)
        hash(state)
        tokens = torch.randint(model.lm.vocab_size, (30,), generator=generator).tolist()
        for token in [*tokens, *model.lm.eos_ids, *mask.nonzero()[:5, 0].tolist()]:
            assert automaton.check(state, token) == bool(mask[token]) == (automaton.step(state, token) is not None)


def test_special_and_missing_tokens_are_no_text() -> None:
    tokenizer = make("gpt-2")
    lm, _ = tiny(tokenizer)
    automaton = grammar(lm.lm, "regex", "(.|\n)*", lm.lm.eos_ids)
    mask = automaton.allowed(automaton.start())
    assert mask.shape == (lm.lm.vocab_size,)
    ends = lm.lm.eos_ids
    assert not mask[len(tokenizer) :].any()
    assert [t for t in tokenizer.all_special_ids if mask[t]] == sorted(ends)
    assert int(mask.sum()) >= len(tokenizer) * 0.9  # all but the bytes in the middle of a character


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"json_schema": {"type": "foo"}}, r'json_schema=\{"type": "foo"\} cannot be followed: Invalid type: foo'),
        ({"json_schema": '{"not": {}}'}, "cannot be followed: Unimplemented keys"),
        ({"json_schema": "{"}, "json_schema='{' is not JSON"),
        ({"json_schema": False}, "no text satisfies false"),
        ({"json_schema": "3"}, "a schema is an object"),
        ({"regex": "a(b"}, "regex='a\\(b' cannot be followed: (.|\\n)*unclosed group"),
        ({"grammar": "start: foo"}, 'cannot be followed: .*unknown name: "foo"'),
        ({"regex": "a", "choices": ["a"]}, "regex and choices are 2 constraints"),
        ({"regex": "a", "stop": ["x"]}, "stop=.* cannot be combined with regex"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos=True cannot be combined with regex"),
        ({"constraint": "trie"}, "constraint='trie' is not allowed"),
        ({"choices": [""]}, "choices"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_settings(**settings)


def test_what_does_not_end_is_an_error(model: Model) -> None:
    with pytest.raises(ConstraintError, match=r"regex='a\{300\}': no text that satisfies it .* max_tokens=5; raise it"):
        model.generate("x", "plain", regex="a{300}", max_tokens=5)
    with pytest.raises(ConstraintError, match="cannot be satisfied within max_tokens=1"):
        model.generate("x", "plain", choices=["a quixotic zebra"], max_tokens=1)
    with pytest.raises(ConstraintError, match=r"regex='ab' allows no token here .*min_tokens"):
        model.generate("x", "prompt_lookup", regex="ab", min_tokens=20)


def test_a_wrong_mask_is_caught(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token that should be masked: what is given out is checked by itself, and the law sees another text."""
    right = Constraint.mask

    def wrong(self: Constraint, output: tuple[int, ...]) -> torch.Tensor:
        mask = right(self, output).clone()
        mask[int((~mask).nonzero()[7])] = True
        return mask

    bias = {int((~right_mask(model)).nonzero()[7]): 60.0}
    monkeypatch.setattr(Constraint, "mask", wrong)
    for method in ("plain", "token_recycling"):
        with pytest.raises(ConstraintError, match="did not keep to"):
            model.generate("x", method, regex="[0-9]{4}", logit_bias=bias)
    monkeypatch.setattr(Constraint, "take", lambda self, output, last: False)
    out = model.generate("x", "plain", regex="[0-9]{4}", logit_bias=bias, max_tokens=4)
    assert not re.fullmatch("[0-9]{4}", out.text)


def right_mask(model: Model) -> torch.Tensor:
    automaton = grammar(model.lm, "regex", "[0-9]{4}", model.lm.eos_ids)
    return automaton.allowed(automaton.start())


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(CapabilityError, match=r'pip install "segue\[constrain\]"'):
        make_settings(regex="a")


def test_a_tokenizer_without_bytes_is_refused() -> None:
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
    lm, _ = tiny(tf.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"))
    with pytest.raises(CapabilityError, match="tokenizer of tiny is WordLevel"):
        lm.generate([0], regex="a")


def test_single_tokens_are_permitted_as_the_mask_says(model: Model) -> None:
    """Also where only the way to the end is left, and behind the end."""
    cases: list[dict[str, Any]] = [
        {"json_schema": PERSON, "max_tokens": 60},
        {"regex": "[a-c]{3,30}", "max_tokens": 9},
    ]
    narrowed = 0
    for asked in cases:
        out = model.generate("The house", "plain", **asked, temperature=1.5, seed=3)
        settings = make_settings(**asked)
        first, second = (constraint(settings, model.lm, settings.max_tokens) for _ in range(2))
        assert first is not None
        assert second is not None
        for length in range(len(out.tokens) + 1):
            prefix = tuple(out.tokens[:length])
            mask = first.mask(prefix).tolist()
            assert mask == [second.permits(prefix, token) for token in range(model.lm.vocab_size)]
            narrowed += sum(mask) < int(first.automaton.allowed(first.state(prefix)).sum())  # type: ignore[arg-type]
        assert not second.permits((*out.tokens, *out.tokens), out.tokens[0])
    assert narrowed


def test_a_mask_that_would_take_too_long_is_given_up() -> None:
    """400 terminals that overlap: with llguidance's own limits the first masks are made, in 80 ms each."""
    text = "start: (" + " | ".join(f"T{i}" for i in range(400)) + ")*\n"
    text += "\n".join(f"T{i}: /[a-z]*{chr(97 + i % 26)}[a-z]{{{i % 40}}}/" for i in range(400))
    found = grammar(segue.model("mini-draft").lm, "grammar", text, segue.model("mini-draft").lm.eos_ids)
    assert not found.allowed(found.start()).any()
    assert "too many expressions" in found.trouble
    assert "<state>" not in found.trouble


def test_nesting_that_python_cannot_follow_is_told() -> None:
    schema: object = {"type": "integer"}
    for _ in range(1200):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match=r"nested more deeply.*cannot be followed"):
        source("json_schema", schema)
