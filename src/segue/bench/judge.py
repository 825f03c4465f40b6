"""What one answer is worth: whether it is valid, whether it is right, and how likely the model finds it.

Validity is asked of oracles that no decoder here uses: jsonschema, Python's `re`, the Lark parser, and the texts
themselves. An answer is compared with references as SQuAD's own script does (arXiv:1606.05250).
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import string
from collections.abc import Sequence
from typing import Any

from segue.bench.cases import Case
from segue.data import DraftTree, Want
from segue.models.grammar import shown
from segue.models.lm import LM

EXTRA = "pip install 'segue[bench]'"


def need(*modules: str) -> None:
    """ValueError with the way out where a judge's package is missing."""
    for module in modules:
        optional(module)


def optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"the judge needs the package {module.partition('.')[0]}: {EXTRA}") from None


def fault(case: Case, text: str) -> str | None:
    """Why a whole answer does not satisfy a case's constraint; None where it does."""
    ((kind, wanted),) = case.constraint.items()
    return _FAULTS[kind](wanted, text)


def _schema(schema: Any, text: str) -> str | None:
    try:
        instance = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    schema = json.loads(schema) if isinstance(schema, str) else schema
    library = optional("jsonschema")
    validator = library.validators.validator_for(schema, default=library.Draft202012Validator)
    wrong = next(validator(schema).iter_errors(instance), None)
    return None if wrong is None else str(wrong.message)


def _regex(pattern: str, text: str) -> str | None:
    return None if re.fullmatch(pattern, text) else f"does not match {pattern}"


def _grammar(grammar: str, text: str) -> str | None:
    lark = optional("lark")
    try:
        parser(grammar).parse(text)
    except lark.exceptions.UnexpectedInput as error:
        return f"does not parse: {str(error).splitlines()[0]}"
    return None


@functools.lru_cache(maxsize=256)
def parser(grammar: str) -> Any:
    """Earley over all ways to cut a text into terminals: what a grammar means, whatever a lexer would prefer.
    ValueError for what only llguidance can read."""
    lark = optional("lark")
    try:
        return lark.Lark(grammar, parser="earley", lexer="dynamic_complete")
    except lark.exceptions.LarkError as error:
        raise ValueError(f"grammar={shown(grammar)} cannot be judged by the Lark parser: {error}") from None


def _choices(choices: Sequence[str], text: str) -> str | None:
    return None if text in choices else "none of the choices"


def _passage(passage: str, text: str) -> str | None:
    return None if text.strip() and text.strip() in passage else "not in the passage"


_FAULTS = {"json_schema": _schema, "regex": _regex, "grammar": _grammar, "choices": _choices, "passage": _passage}


def right(case: Case, text: str) -> bool:
    """Whether an answer is one of the references: without case, punctuation, articles and spare spaces."""
    return normalised(text) in {normalised(reference) for reference in case.references}


def normalised(text: str) -> str:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def likelihood(lm: LM, prompt: Sequence[int], tokens: Sequence[int]) -> float:
    """Log-probability of an answer's tokens under the model itself, whatever settings they were decoded with: one
    forward over the prompt and the answer."""
    if not tokens:
        return 0.0
    before = list(lm.start_ids or prompt)
    sequence = lm.reading(list(prompt) if lm.start_ids else [])
    try:
        tree = DraftTree.chain([*before, *tokens[:-1]])
        rows = lm.forward([(sequence, tree, Want())])[0].logits[len(before) - 1 :].double().log_softmax(-1)
    finally:
        sequence.release()
    return float(sum(row[token] for row, token in zip(rows, tokens, strict=True)))
