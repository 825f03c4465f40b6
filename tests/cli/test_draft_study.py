"""`segue draft-study` from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import segue
from segue.api import Model
from segue.models import cost

from .conftest import Call, make_model

PROMPTS = ("Hello", "There are words here", "And 1 2 3 4 5")


@pytest.fixture(autouse=True)
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes seconds for every model; what a draft costs depends on its depth here."""

    def curve(lm: Any, *_: Any, **__: Any) -> cost.Cost:
        depth = lm.network.config.num_hidden_layers
        return cost.Cost((1, 2, 4), (0.001 * depth, 0.0011 * depth, 0.0012 * depth), 0.0, (1, 1, 1))

    monkeypatch.setattr(cost, "cost_of", curve)
    monkeypatch.setattr("segue.models.transformers.lm.cost_of", curve)


@pytest.fixture(scope="session")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from segue.models.prune import keep_layers

    folder = tmp_path_factory.mktemp("draft") / "small"
    keep_layers(tiny, [0], folder)
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return path


@pytest.fixture
def study(call: Call, tiny: Path, suite: Path) -> Call:
    """study(*flags): of the tiny target, a few tokens a prompt."""

    def start(*flags: object) -> Any:
        return call("draft-study", "-m", tiny, "--suite", suite, "--max-tokens", 12, "--max-gamma", 3, *flags)

    return start


def test_the_figures_are_those_of_live_decoding(study: Call, tiny: Path, small: Path, lm: Model) -> None:
    told = json.loads(study("--draft", small, "--draft", tiny, "--json").out)
    assert told["target"]["model"] == "tiny"
    assert told["setting"]["answers"] == 3
    pruned, itself = told["drafts"]
    assert (pruned["draft"], pruned["layers"], pruned["width"]) == (str(small), 1, 32)
    assert (itself["layers"], itself["relative_latency"], pruned["relative_latency"]) == (2, 1.0, 0.5)
    assert set(itself["acceptance"]) == {1.0}
    for gamma in (1, 2, 3):
        method = segue.method("draft_model", draft=str(small), gamma=gamma)
        stats = [lm.generate(p, method, max_tokens=12).stats for p in PROMPTS]
        accepted = sum(s.accepted for s in stats) / sum(s.rounds for s in stats)
        point = pruned["points"][gamma]
        assert point["accepted"] == pytest.approx(accepted)
        verify = 0.002 * {1: 1.1, 2: 1.15, 3: 1.2}[gamma]
        assert point["throughput"] == pytest.approx((1 + accepted) / (gamma * 0.001 + verify))
    # A draft as dear as its target cannot pay, however often it agrees.
    assert (itself["best_gamma"], itself["break_even"]) == (0, None)


def test_without_the_target_the_figures_are_the_same(
    study: Call, call: Call, tiny: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace.jsonl"
    result = study("--record", trace)
    assert (result.code, result.out) == (0, "")
    assert result.err == f"{trace}: 3 answers of tiny; --trace {trace} uses it\n"
    live = json.loads(study("--draft", small, "--json").out)
    loaded = []
    load = segue.models.load.load  # type: ignore[attr-defined]
    monkeypatch.setattr("segue.models.load.load", lambda path, **o: loaded.append(path) or load(path, **o))
    replayed = json.loads(call("draft-study", "--trace", trace, "--draft", small, "--max-gamma", 3, "--json").out)
    assert loaded == [str(small)]
    assert replayed["drafts"] == live["drafts"]
    assert replayed["target"] == live["target"]


def test_tables_and_a_file(study: Call, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = study("--draft", small, "-o", file)
    assert (result.code, result.err) == (0, "")
    told = json.loads(file.read_text())
    for text in ("drafts for tiny (float32", "break-even", "tokens/s (accepted)", "gamma"):
        assert text in result.out
    for point in told["drafts"][0]["points"]:
        assert f"{point['throughput']:.0f} ({point['accepted']:.2f})" in result.out
    assert "predicted and measured" not in result.out
    assert told["setting"]["command"].startswith("segue ")


def test_predicted_beside_measured(study: Call, small: Path) -> None:
    flags = ("--draft", small, "--measure", "--gamma", 1, "--gamma", 2, "--rounds", 1)
    told = json.loads(study(*flags, "--json").out)
    assert [(m["draft"], m["gamma"], m["equal"]) for m in told["measured"]] == [(str(small), 1, 3), (str(small), 2, 3)]
    for m in told["measured"]:
        point = told["drafts"][0]["points"][m["gamma"]]
        assert m["predicted"] == point["ratio"]
        assert m["error"] == pytest.approx(point["answers_ratio"] / m["ratio"] - 1)
        assert m["accepted"] == pytest.approx(point["accepted"])
    assert "predicted and measured" in study(*flags).out


def test_the_best_gamma_is_measured_if_none_is_named(study: Call, small: Path) -> None:
    told = json.loads(study("--draft", small, "--measure", "--rounds", 1, "--json").out)
    assert [m["gamma"] for m in told["measured"]] == [max(1, told["drafts"][0]["best_gamma"])]


def test_an_unfinished_trace_is_remarked_upon(study: Call, call: Call, small: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    study("--record", trace)
    complete = trace.read_bytes()
    trace.write_bytes(b"".join(line + b"\n" for line in complete.split(b"\n")[:3]))
    result = call("draft-study", "--trace", trace, "--draft", small)
    assert result.code == 0
    assert result.err == f"note: {trace} holds 2 of 3 answers: its recording was not ended\n"
    study("--record", trace)
    assert trace.read_bytes() == complete


def test_damaged_and_foreign_files_are_refused(
    study: Call, call: Call, small: Path, tiny: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    study("--record", trace)
    swapped = make_model(tmp_path / "swapped", swapped=True)
    for flags in (("--trace", trace), ("-m", tiny)):
        error = call("draft-study", *flags, "--draft", swapped).error()
        assert "swapped cannot draft for tiny" in error
    lines = trace.read_bytes().split(b"\n")
    lines[2] = lines[2][:-4]
    trace.write_bytes(b"\n".join(lines))
    assert f"{trace} line 3 is not an answer of tiny" in call("draft-study", "--trace", trace, "--draft", small).error()
    assert "line 3" in study("--record", trace).error()
    assert "No such file" in call("draft-study", "--trace", tmp_path / "none", "--draft", small).error()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to judge: name a draft model with --draft"),
        (["--draft", "a", "--draft", "a"], "--draft a is named twice"),
        (["--draft", "a", "--trace", "t", "-m", "x"], "--trace replaces the target, and -m needs it"),
        (["--draft", "a", "--trace", "t", "--measure"], "and --measure needs it"),
        (["--draft", "a", "--trace", "t", "--record", "r"], "and --record needs it"),
        (["--draft", "a", "--gamma", 2], "--gamma names what --measure measures"),
        (["--draft", "a", "--measure", "--gamma", 0], "--gamma 0 is not allowed: at least 1"),
        (["--draft", "a", "--measure", "--gamma", 9], "at most --max-gamma, which is 8"),
        (["--draft", "a", "--max-gamma", 0], "--max-gamma 0 is not allowed: at least 1"),
        (["--draft", "a", "--max-tokens", 0], "--max-tokens 0 is not allowed"),
        (["--draft", "a", "-o", "/nowhere/x.json"], "-o /nowhere/x.json: there is no folder /nowhere"),
        (["--draft", "a", "--suite", "nope"], "no suite or file is called 'nope'"),
        (["--draft", "a", "build", "--keep", "0", "-o", "x"], "--draft is of the study and not of build"),
        (["build", "-o", "x"], "with --keep 0,5, or their number with --layers 2"),
        (["build", "-o", "x", "--keep", "0", "--layers", 2], "with --keep 0,5, or their number with --layers 2"),
        (["build", "-o", "x", "--keep", "a,b"], "--keep 'a,b' is not a list of layer numbers, e.g. 0,5"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(call: Call, flags: list[Any], message: str) -> None:
    assert message in call("draft-study", *flags).error()


def test_a_draft_is_built(call: Call, tiny: Path, tmp_path: Path, lm: Model) -> None:
    folder = tmp_path / "draft"
    result = call("draft-study", "build", "-m", tiny, "--keep", "0,1", "-o", folder)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{folder}: layers 0, 1 of the 2 of tiny, ")
    draft = segue.model(str(folder))
    assert draft.generate("Hello", "plain", max_tokens=8).text == lm.generate("Hello", "plain", max_tokens=8).text
    told = json.loads(call("draft-study", "build", "-m", tiny, "--layers", 1, "-o", tmp_path / "one", "--json").out)
    assert (told["teacher"], told["kept"], told["folder"]) == ("tiny", [0], str(tmp_path / "one"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "one").config.num_hidden_layers == 1
    assert "is there already" in call("draft-study", "build", "-m", tiny, "--keep", "0", "-o", folder).error()
