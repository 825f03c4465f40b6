"""`segue run`: what goes in, what comes out, and what is wrong with a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segue.api import Model
from segue.cli.run import size

from .conftest import Call, prompts, records, write_lines


def test_answers_are_those_of_the_library(run: Call, out: Path, lm: Model) -> None:
    lines = [
        {"prompt": "first"},
        {"id": "b", "prompt": [70, 71, 72], "max_tokens": 3},
        {
            "id": "c",
            "prompt": "one two one two",
            "method": "prompt_lookup",
            "set": {"draft_tokens": 2},
            "max_tokens": 9,
        },
        {"id": "d", "prompt": "x", "temperature": 0.9, "seed": 4, "logprobs": 1},
        {"id": "e", "messages": [{"role": "user", "content": "Hello"}]},
        {"id": "f", "prompt": "x", "stop": ["a"], "logit_bias": {"70": 50}},
    ]
    result = run(lines)
    expected = {
        1: lm.generate("first", max_tokens=4),
        "b": lm.generate([70, 71, 72], max_tokens=3),
        "c": lm.generate("one two one two", max_tokens=9),
        "d": lm.generate("x", max_tokens=4, temperature=0.9, seed=4, logprobs=1),
        "e": lm.generate("User: Hello\nAssistant:", max_tokens=4, stop=["\nUser:"]),
        "f": lm.generate("x", max_tokens=4, stop="a", logit_bias={70: 50}),
    }
    found = records(out)
    assert result.code == 0
    assert result.out == ""
    assert set(found) == set(expected)
    for key, answer in expected.items():
        for part in ("text", "tokens", "finish_reason"):
            assert found[key][part] == answer.as_dict()[part]
        assert found[key]["stats"]["tokens"] == len(answer.tokens)
    assert found["c"]["stats"]["method"] == "prompt_lookup"
    assert len(found["d"]["logprobs"]) == 4
    assert result.err.startswith("6 prompts · ")


def test_the_line_overrides_the_command(run: Call, out: Path) -> None:
    lines = [
        {"id": 1, "prompt": "x"},
        {"id": 2, "prompt": "x", "method": "plain"},
        {"id": 3, "prompt": "x", "set": {"level": 3}},
    ]
    assert run(lines, "--method", "lookahead", "--set", "window=2").code == 0
    assert [records(out)[i]["stats"]["method"] for i in (1, 2, 3)] == ["lookahead", "plain", "lookahead"]


def test_summary_in_json(run: Call) -> None:
    summary = json.loads(run([*prompts(3), {"prompt": ""}], "--json").out)
    assert {key: summary[key] for key in ("prompts", "answered", "skipped", "failed", "tokens")} == {
        "prompts": 4, "answered": 4, "skipped": 0, "failed": 1, "tokens": 12,
    }  # fmt: skip
    assert 4 <= summary["forwards"] <= 6  # one pack for all: far fewer than 12
    assert summary["seconds"] > 0


BAD = [
    (b'{"prompt": "\xff"}', (1,), "line 1 is not UTF-8: byte 0xff at 12"),
    (b'{"prompt": "torn', (2,), "line 2 is not JSON"),
    (b"[1, 2]", (3,), "line 3 is not a JSON object"),
    (b"[" * 100_000, (4,), "line 4 is not JSON"),
    ({"id": [1], "prompt": "x"}, (5,), "line 5: id [1] is neither text nor a whole number"),
    ({"id": "no", "text": "x"}, "no", 'either "prompt" or "messages"'),
    ({"id": "two", "prompt": "x", "messages": []}, "two", 'either "prompt" or "messages"'),
    ({"id": "five", "prompt": 5}, "five", "the prompt 5 is neither"),
    ({"id": "null", "prompt": [1, None]}, "null", "[1, None] is neither"),
    ({"id": "empty", "prompt": ""}, "empty", "the prompt is empty"),
    ({"id": "none", "prompt": []}, "none", "the prompt is empty"),
    ({"id": "half", "prompt": "a\ud800b"}, "half", "half a surrogate pair"),
    ({"id": "long", "prompt": "x" * 300}, "long", "a context of 256"),
    ({"id": "range", "prompt": [999]}, "range", "token id 999"),
    ({"id": "typo", "prompt": "x", "temprature": 1}, "typo", "did you mean temperature?"),
    ({"id": "cold", "prompt": "x", "temperature": -1}, "cold", "temperature=-1 is not allowed"),
    ({"id": "stop", "prompt": "x", "stop": 5}, "stop", "stop=5 is not allowed"),
    ({"id": "ids", "prompt": "x", "stop_tokens": "12"}, "ids", "stop_tokens='12' is not allowed"),
    ({"id": "method", "prompt": "x", "method": "lookahed"}, "method", "did you mean lookahead"),
    ({"id": "kind", "prompt": "x", "method": 3}, "kind", '"method" is a name'),
    ({"id": "field", "prompt": "x", "method": "lookahead", "set": {"windw": 1}}, "field", "did you mean window?"),
    ({"id": "name", "prompt": "x", "set": {"name": 1}}, "name", "auto has no field 'name'"),
    ({"id": "ends", "messages": [{"role": "user", "content": ""}], "stop": 5}, "ends", "stop=5 is not allowed"),
    ({"id": "role", "messages": [{"role": "robot", "content": ""}]}, "role", "role 'robot' is unknown"),
    ({"id": "talk", "messages": "Hello"}, "talk", "messages must be a list"),
    ({"id": "content", "messages": [{"role": "user", "content": 5}]}, "content", "content 5 is not text"),
    ({"id": "keys", "messages": [{"role": "user"}]}, "keys", 'it has "role" and "content"'),
    ({"id": "\ud800", "prompt": ""}, "\ud800", "the prompt is empty"),
]


def test_bad_lines_are_recorded_and_the_rest_goes_on(run: Call, out: Path) -> None:
    result = run([*(line for line, _, _ in BAD), b"", *prompts(2)])
    found = records(out)
    assert result.code == 1
    assert f"{len(BAD) + 2} prompts, {len(BAD)} failed" in result.err
    assert set(found) == {key for _, key, _ in BAD} | {"p0", "p1"}
    for _, key, fragment in BAD:
        assert fragment in found[key]["error"]


def test_a_crash_in_one_request_is_recorded_with_its_traceback(
    run: Call, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Model.encode

    def fail(self: Model, prompt: Any) -> list[int]:
        if prompt == "prompt 1":
            raise RuntimeError("out of luck")
        return encode(self, prompt)

    monkeypatch.setattr(Model, "encode", fail)
    result = run(prompts(3))
    assert result.code == 1
    assert records(out)["p1"] == {"id": "p1", "error": "RuntimeError: out of luck"}
    assert "Traceback" in result.err
    assert len(records(out)) == 3


def test_keys_without_a_meaning_are_ignored_aloud(run: Call) -> None:
    result = run([line | {"kind": "chat"} for line in prompts(2)])
    assert result.code == 0
    assert "not settings, so ignored: kind (2 lines)" in result.err


@pytest.mark.parametrize(
    ("lines", "fragment"),
    [
        ([{"id": "a"}, {"id": "b"}, {"id": "a"}], "id 'a' is on line 1 and on line 3"),
        ([{"id": 2}, {"prompt": "x"}], "id 2 is on line 1 and on line 2 (a line without an id has its number)"),
    ],
)
def test_ids_that_come_twice_stop_everything(run: Call, out: Path, lines: list[Any], fragment: str) -> None:
    assert fragment in run(lines).error()
    assert not out.exists()


@pytest.mark.parametrize(
    ("source", "target", "fragment"),
    [
        ("missing.jsonl", "out.jsonl", "missing.jsonl: No such file"),
        ("/dev/null", "out.jsonl", "not a regular file"),
        ("in.jsonl", "missing/out.jsonl", "there is no folder"),
        ("in.jsonl", ".", "Is a directory"),
        ("in.jsonl", "/proc/out.jsonl", "cannot write /proc/out.jsonl"),
        ("in.jsonl", "in.jsonl", "is the input"),
    ],
)
def test_places_that_do_not_work(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, fragment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("in.jsonl"), prompts(1))
    assert fragment in call("run", source, "-o", target).error()


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--temperature", -1], "temperature=-1.0"),
        (["--method", "lookahed"], "lookahead"),
        (["--set", "windw=1", "--method", "lookahead"], "window"),
        (["--kv-budget", "much"], "'much' is not an amount of memory"),
        (["--kv-budget", "0G"], "--kv-budget 0"),
        (["--max-running", 0], "--max-running 0"),
        (["--workers", 2], "--workers 2 says something about --engine ray only"),
        (["--address", "auto"], "--address auto says something about --engine ray only"),
        (["--engine", "dask"], "'dask' is not one of 'local', 'ray'"),
    ],
)
def test_a_wrong_command_writes_nothing(run: Call, out: Path, flags: list[object], fragment: str) -> None:
    assert fragment in run(prompts(1), *flags).error()
    assert not out.exists()


def test_budgets_bind(run: Call, out: Path) -> None:
    lines = [*prompts(3), {"id": "large", "prompt": "x", "max_tokens": 200}]
    assert run(lines, "--kv-budget", "60K", "--max-running", 1, "--token-budget", 4).code == 1
    assert "raise kv_budget" in records(out)["large"]["error"]
    assert len(records(out)) == 4


@pytest.mark.parametrize(
    ("text", "number"), [("12", 12), ("512M", 2**29), ("2G", 2**31), ("1.5kib", 1536), ("1TB", 2**40)]
)
def test_sizes(text: str, number: int) -> None:
    assert size(text) == number
