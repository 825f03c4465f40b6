"""Segue's methods inside other libraries."""

from __future__ import annotations

from typing import Any

from segue import catalog
from segue.models.method import Method

EARLY = {False: "heuristic", True: "full", "never": "never"}
BEAMS = {"num_beams": "beams", "length_penalty": "length_penalty", "early_stopping": "early"}
# Settings of generate that are fields of a method, where it has them.
FIELDS: dict[str, dict[str, str]] = {
    "diverse_beam": {**BEAMS, "num_beam_groups": "groups", "diversity_penalty": "strength"},
    "contrastive_search": {"penalty_alpha": "alpha", "top_k": "k"},
    "dola": {"dola_layers": "layers"},
}
# What generate fills in where nobody gave a value.
DEFAULTS: dict[str, Any] = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "top_k": 50}
DEFAULTS |= {"num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0}
# What means nothing to a method that has no such field.
OTHERS: tuple[str, ...] = (
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "penalty_alpha",
    "dola_layers",
    "constraints",
)
OTHERS += ("force_words_ids", "prompt_lookup_num_tokens")


def for_transformers(name: str, /, *, tokenizer: Any = None, **fields: Any) -> Any:
    """A method as the loop of transformers' generate: model.generate(..., custom_generate=for_transformers(name, ...)).

    `fields` are the method's own; those that generate has a setting for (num_beams, num_beam_groups, diversity_penalty,
    penalty_alpha, dola_layers, ...) may be given there instead. Texts padded on the left, processors, stopping
    criteria, end and padding ids, lengths, do_sample, num_return_sequences and return_dict_in_generate are honoured;
    what cannot be is refused by name. `tokenizer` is for methods that look at text: transformers hands none to a loop
    that is not its own, and no streamer, which then gets the prompt alone. Raises ValueError for an unknown method or
    field.
    """
    from segue.models.generate import Generate

    catalog.build(name, **fields)
    return Generate(name, lambda config: _build(name, fields, config), tokenizer)


def _build(name: str, fields: dict[str, Any], config: Any) -> Method:
    """The method for a call."""
    entry = catalog.find(name)
    known = {field.name for field in entry.fields}
    mine = FIELDS.get(name) or {theirs: ours for theirs, ours in BEAMS.items() if "beams" in known}
    given = dict(fields)
    if config.do_sample and entry.family == "choose/search":
        raise ValueError(f"do_sample=True means nothing to {name}, which searches: leave it out")
    for setting in OTHERS:
        value = getattr(config, setting, None)
        if setting not in mine and value not in (None, DEFAULTS.get(setting)):
            raise ValueError(f"{setting}={value!r} means nothing to {name}: leave it out, or set {name}'s own fields")
    for setting, field in mine.items():
        value = getattr(config, setting, None)
        if value in (None, DEFAULTS.get(setting)):
            continue
        value = EARLY[value] if field == "early" else value
        if field in fields and fields[field] != value:
            raise ValueError(f"{setting}={value!r} and {field}={fields[field]!r} are two values of one thing: give one")
        given[field] = value
    method: Method = catalog.build(name, **given)
    return method
