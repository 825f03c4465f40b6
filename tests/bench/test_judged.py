"""The contest of answers: who is asked what and when, what is left out, and what the figures are over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue
from segue import catalog
from segue.api import Model
from segue.bench.cases import Case
from segue.bench.constrained_suite import CONTROL, Constrained
from segue.bench.judged import Answer, Contest, Entrant, summary
from segue.bench.translation_suite import Translation, has, phrases
from tests.cli.conftest import make_model

SETTINGS = {"max_tokens": 24, "temperature": 0.0}
CASES = [
    Case("regex", "abc", references=("12",), constraint={"regex": "[0-9]{2}"}),
    Case("choices", "Which one?", references=("no",), constraint={"choices": ["yes", "no"]}),
    Case("extraction", "Say it: Ne Win led Burma.", constraint={"passage": "Ne Win led Burma."}),
    Case("json_schema", "JSON", constraint={"json_schema": {"enum": ["a", 3]}}),
    Case("grammar", "ab", constraint={"grammar": 'start: "a" "b"*'}),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return segue.model(str(make_model(tmp_path_factory.mktemp("model") / "tiny")))


def entrants(*names: str) -> list[Entrant]:
    plain = segue.method("plain")
    return [
        Entrant(CONTROL, plain, free=True),
        Entrant("plain", plain),
        *(Entrant(name, segue.method(name)) for name in names),
    ]


class Listening(Constrained):
    """Notes who is asked, and what the control had said."""

    def __init__(self) -> None:
        super().__init__(CASES)
        self.heard: list[tuple[str, str, str | None]] = []
        self.left = 1 << 40  # questions until it is killed

    def told(self, entrant: Entrant, case: Case, control: Answer | None, model: Model) -> Any:
        if len(self.heard) >= self.left:
            raise KeyboardInterrupt
        self.heard.append((entrant.name, case.prompt, control.text if control else None))
        return super().told(entrant, case, control, model)


def test_the_control_leads_and_the_others_take_turns(model: Model) -> None:
    sort = Listening()
    contest = Contest(sort, CASES[:3], model, SETTINGS)
    answers = contest.run(entrants("beam", "prompt_lookup"))
    names = [name for name, _, _ in sort.heard]
    assert [names[i : i + 4] for i in range(0, 12, 4)] == [
        [CONTROL, "plain", "beam", "prompt_lookup"],
        [CONTROL, "beam", "prompt_lookup", "plain"],
        [CONTROL, "prompt_lookup", "plain", "beam"],
    ]
    for number, case in enumerate(CASES[:3]):
        said = {control for _, prompt, control in sort.heard[4 * number + 1 : 4 * number + 4] if prompt == case.prompt}
        assert said == {answers[0][number].text}  # type: ignore[union-attr]


def test_an_answer_is_the_librarys_with_its_costs(model: Model) -> None:
    contest = Contest(Constrained(CASES), CASES, model, SETTINGS)
    (answer,) = [contest.answer(entrants()[1], CASES[0], None)]
    out = model.generate("abc", "plain", **SETTINGS, regex="[0-9]{2}")
    assert answer is not None
    assert (answer.text, answer.tokens, answer.finish) == (out.text, len(out.tokens), "stop")
    assert (answer.forwards, answer.checks) == (out.stats.target_forwards, len(out.tokens))
    assert answer.texts == [out.text]
    beam = contest.answer(Entrant("beam", segue.method("beam")), CASES[1], None)
    assert beam is not None
    assert set(beam.texts) == {"yes", "no"}
    candidates = model.generate("Which one?", "beam", **SETTINGS, choices=("yes", "no")).candidates or []
    assert beam.logp == pytest.approx(candidates[0].logp, abs=1e-4)  # a search's own, which it masks but leaves so


def test_nobody_profits_from_anothers_masks(model: Model) -> None:
    contest = Contest(Constrained(CASES), CASES, model, SETTINGS)
    kept = []
    for entrant in entrants("beam")[1:]:
        contest.answer(entrant, CASES[0], None)
        kept.append(dict(model.lm.compiled))
    assert len(kept[0]) == len(kept[1]) == 2  # the grammar, and the tokens as bytes
    same = [kept[0][key] is kept[1][key] for key in kept[0]]
    assert sorted(same) == [False, True]


def test_a_mask_counts_once_whoever_asks(model: Model) -> None:
    """Beam search reads a mask for whether there is a way on and again for the scores; that is one check."""
    out = model.generate("Which one?", segue.method("beam", beams=2), **SETTINGS, choices=("yes", "no"))
    prefixes = {()} | {tuple(text[:i]) for text in ("yes", "no") for i in range(1, len(text) + 1)}
    assert 3 < out.stats.constraint_checks <= len(prefixes)
    plain = model.generate("Which one?", "plain", **SETTINGS, choices=("yes", "no"))
    assert plain.stats.constraint_checks == len(plain.tokens)
    drawn = model.generate("Which one?", segue.method("mbr", samples=3), **SETTINGS, choices=("yes", "no"), seed=0)
    counts = zip(drawn.trace[0]["counts"], drawn.candidates or [], strict=True)
    assert drawn.stats.constraint_checks == sum(count * len(c.tokens) for count, c in counts)
    free = model.generate("Which one?", "beam", **SETTINGS)
    assert free.stats.constraint_checks == 0


def test_who_takes_no_constraint_is_left_out_with_the_reason(model: Model) -> None:
    contest = Contest(Constrained(CASES), CASES, model, SETTINGS)
    everybody = entrants("beam", "tokenization_bias", "exact_extract")
    found, reasons = contest.able(everybody, strict=False)
    assert [entrant.name for entrant in found] == [CONTROL, "plain", "beam", "exact_extract"]
    assert "constrain" in reasons["tokenization_bias"]
    with pytest.raises(ValueError, match="tokenization_bias cannot take part"):
        contest.able(everybody, strict=True)
    alone = Contest(Constrained(CASES), CASES[:2], model, SETTINGS)
    assert alone.able(entrants("exact_extract"), strict=True)[1] == {"exact_extract": "none of these cases is for it"}


def test_a_killed_contest_goes_on_with_the_same_answers(model: Model, tmp_path: Path) -> None:
    whole = Contest(Constrained(CASES), CASES, model, SETTINGS).run(entrants("beam"))
    journal, sort = tmp_path / "journal.jsonl", Listening()
    sort.left = 8
    contest = Contest(sort, CASES, model, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        contest.run(entrants("beam"), journal=journal, setting={"a": 1})
    assert len(journal.read_text().splitlines()) == 1 + 2
    journal.write_bytes(journal.read_bytes() + b'{"case": 2, "ans')  # it was killed while it wrote
    sort.left = 1 << 40
    done: list[int] = []
    again = contest.run(
        entrants("beam"), journal=journal, setting={"a": 1}, progress=lambda number, total: done.append(number)
    )
    assert done == list(range(7, 16))
    assert len(sort.heard) == 8 + 9
    assert [[a and a.text for a in side] for side in again] == [[a and a.text for a in side] for side in whole]
    with pytest.raises(ValueError, match="of another contest"):
        contest.run(entrants("beam"), journal=journal, setting={"a": 2})


def given(text: str, finish: str = "stop", tokens: int = 4, **more: Any) -> Answer:
    return Answer(text, tokens, finish, [text], -float(tokens), forwards=tokens, rows=tokens, seconds=1.0, **more)


def records(answers: Sequence[Sequence[Answer]], cases: Sequence[Case], model: Model) -> dict[str, dict[str, Any]]:
    contest = Contest(Constrained(CASES), cases, model, SETTINGS)
    return {r["name"]: r for r in summary(contest, entrants("beam"), [list(side) for side in answers])}


def test_figures_by_hand(model: Model) -> None:
    cases = CASES[:2] * 2
    control = [given("nothing"), given("no"), given("12345", "length"), given("no", "length")]
    plain = [given("12"), given("yes"), Answer(error="no text was found", seconds=9.0), given("no", tokens=8)]
    beam = [given("12", tokens=8), given("no"), given("34", "length"), Answer(error="too long", refused=True)]
    found = records([control, plain, beam], cases, model)
    figures = {name: {key: figure["value"][0] for key, figure in r["figures"].items()} for name, r in found.items()}
    assert figures[CONTROL] | {"seconds": 0} == figures[CONTROL] | {
        "valid": 25.0,
        "right": 25.0,
        "unfinished": 50.0,
        "seconds": 0,
    }
    assert (figures["plain"]["valid"], figures["plain"]["right"], figures["plain"]["unfinished"]) == (75.0, 50.0, 25.0)
    assert (figures["beam"]["valid"], figures["beam"]["right"], figures["beam"]["unfinished"]) == (50.0, 50.0, 25.0)
    assert found["beam"]["figures"]["valid"]["to_plain"][0] == -25.0
    assert found["beam"]["by_kind"]["choices"]["valid"] == 50.0
    # Costs: the first two cases, which both gave an answer to.
    assert found["beam"]["figures"]["log_p"] == {
        "value": [-6.0, -8.0, -4.0],
        "prompts": 2,
        "to_plain": [-2.0, -4.0, 0.0],
    }
    assert found["beam"]["figures"]["seconds"]["to_plain"] == [1.0, 1.0, 1.0]
    assert found["beam"]["failed"] == ["too long"]
    assert found["plain"]["unanswered"] == ["no text was found"]
    assert [found[name]["invalid"] for name in found] == [[], [], []]


def test_an_invalid_answer_is_named_and_a_cut_one_is_never_valid(model: Model) -> None:
    case = CASES[1]
    for text, finish, named in (
        ("maybe", "stop", True),
        ("no", "length", False),
        ("no", "stop", False),
        ("n", "length", True),
    ):
        found = records([[given("x")], [given("no")], [given(text, finish)]], [case], model)["beam"]
        assert [one["text"] for one in found["invalid"]] == [text] * named
        assert found["figures"]["valid"]["value"][0] == (100.0 if (text, finish) == ("no", "stop") else 0.0)
        assert found["figures"]["unfinished"]["value"][0] == (100.0 if finish == "length" else 0.0)
    assert found["invalid"][0]["why"] == "none of the choices"


def test_phrases_are_of_the_reference_and_apart() -> None:
    reference = "She bought apples, pears and some strawberries at the market yesterday."
    first, second = phrases(reference)
    assert (first, second) == ("strawberries", "market yesterday")
    assert phrases("He sleeps.") == ["sleeps"]
    assert phrases("Yes.") == []
    for text in (
        "It was a long, long way to go home tonight for us",
        "Das Haus ist sehr alt und sehr schön, sagt sie.",
    ):
        for phrase in phrases(text):
            assert has(text, phrase)
            assert phrase not in text.split()[0]
    assert has("a market", "market")
    assert not has("supermarket", "market")


def test_beam_allocation_is_told_phrases_of_the_reference(model: Model) -> None:
    sort = Translation()
    case = Case("translation", "German: x\nEnglish:", "x", ("He sleeps.",))
    dba = Entrant("dynamic_beam_allocation", segue.method("dynamic_beam_allocation"))
    assert sort.told(dba, case, None, model).phrases == "sleeps"
    assert sort.told(dba, Case("translation", "a", "b", ("Yes.",)), None, model) is None
    contest = Contest(sort, [case], model, SETTINGS)
    answer = contest.answer(dba, case, None)
    assert answer is not None
    assert " sleeps" in answer.text
    placed = sort.quality([case, case], [answer, Answer("", error="none")])["placed"]
    assert sort.entrant("dynamic_beam_allocation", dba.method).says.startswith("oracle")
    assert placed(np.ones((1, 2))).tolist() == [50.0]


def test_everybody_whose_card_names_the_suite_takes_part() -> None:
    named = {name for name, entry in catalog.entries().items() if entry.card.check == "translation"}
    found = [entrant.name for entrant in Translation().entrants(None, "mini")]
    assert found[:2] == ["plain", "sampling"]
    assert set(found) == named | {"plain", "sampling", "beam:beams=8"}
    constrained = [entrant.name for entrant in Constrained(CASES).entrants(None, "mini")]
    assert constrained[:2] == [CONTROL, "plain"]
    assert {"auto", "beam", "sketch_guided", "exact_extract", "draft_model"} <= set(constrained)
    assert not {"rest", "dresd"} & set(constrained)
