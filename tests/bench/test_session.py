from __future__ import annotations

import pytest

from segue.bench.session import parse_methods


def test_methods_with_fields_stand_side_by_side_under_names_of_their_own() -> None:
    one, two, three = parse_methods("auto, auto:deny=token_recycling+lookahead,token_recycling:nodes=16", None, "mini")
    assert [one.name, two.name, three.name] == [
        "auto",
        "auto:deny=token_recycling+lookahead",
        "token_recycling:nodes=16",
    ]
    assert three.method.nodes == 16
    every, fewer = ({drafter.name for drafter in entrant.method.drafters} for entrant in (one, two))
    assert every - fewer == {"token_recycling", "lookahead"}


def test_a_field_without_a_value_and_an_unknown_name_are_errors() -> None:
    with pytest.raises(ValueError, match="'jakiro' is not FIELD=VALUE"):
        parse_methods("auto:jakiro", None, "mini")
    with pytest.raises(ValueError, match="jakiro_"):
        parse_methods("auto:deny=lookahead+jakiro_", None, "mini")
