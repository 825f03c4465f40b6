from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segue.train import RECIPES, LanguageModel, train
from segue.train.corpus import SOURCES


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'mini-daft'; did you mean 'mini-draft'"):
        train("mini-daft", data=tmp_path, out=tmp_path)


@pytest.mark.parametrize("recipe", [r for r in RECIPES.values() if isinstance(r, LanguageModel)], ids=str)
def test_mixtures_are_whole_and_known(recipe: Any) -> None:
    assert sum(recipe.mixture.values()) == pytest.approx(1.0)
    assert set(recipe.mixture) <= set(SOURCES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 1.0, "tokens": 5}, "not both"),
        ({"minutes": 0.0}, "minutes must be above 0, not 0"),
        ({"teacher": Path("x")}, "'mini' takes no teacher"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train("mini", data=tmp_path, out=tmp_path, **options)


def test_a_draft_needs_its_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        train("mini-draft", data=tmp_path, out=tmp_path)
