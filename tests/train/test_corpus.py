from __future__ import annotations

from pathlib import Path

import pytest

from segue.train.corpus import SOURCES, join_wikitext


@pytest.mark.parametrize(
    ("source", "document"),
    [
        ("maths", "Question: What is 3 and 3?\nAnswer: It is 6.\n#### 6"),
        (
            "questions",
            "Context: Rain fell on Bonn.\nQuestion: What fell?\nAnswer: Rain\nQuestion: Where?\nAnswer: Bonn",
        ),
        ("dialogue", "User: Hello?\nAssistant: Hello."),
        ("instructions", "Instruction: Agree.\nInput: No.\nOutput: Yes."),
        ("instructions", "Instruction: Agree.\nOutput: Yes."),
        ("programs", "# Add one.\ndef f(x):\n    return x + 1\n"),
        ("wiki", '= Ulm =\n\nA town, in 1,250 "old" years.'),
        ("wiki", "Rain fell on Bonn."),
    ],
)
def test_each_source_has_its_prompt_form(corpus: Path, source: str, document: str) -> None:
    assert document in list(SOURCES[source].train(corpus))


def test_translation_goes_both_ways(corpus: Path) -> None:
    first, second = list(SOURCES["translation"].train(corpus))[:2]
    assert first.startswith("German: Ich habe 2 Katzen.\nEnglish: I have 2 cats.\nGerman: ")
    assert second.startswith("English: I have 4 cats.\nGerman: Ich habe 4 Katzen.\nEnglish: ")


def test_heldout_contexts_stay_out_of_training(corpus: Path) -> None:
    assert "Snow fell on Ulm." not in list(SOURCES["wiki"].train(corpus))


def test_heldout_library_files_stay_out_of_training(corpus: Path) -> None:
    kept = list(SOURCES["stdlib"].heldout(corpus))
    assert len(kept) == 4
    assert not set(kept) & set(SOURCES["stdlib"].train(corpus))


def test_wikitext_is_joined() -> None:
    assert join_wikitext(' " It \'s " 3 @.@ 5 ( or so ) ; well @-@ known \n') == '"It\'s" 3.5 (or so); well-known'


def test_missing_data_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gsm8k_train.*point data at"):
        list(SOURCES["maths"].train(tmp_path))
