"""`segue generate`: complete one prompt, streamed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import segue
from segue.cli import flags, report
from segue.cli.settings import with_settings


@with_settings
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; '-', or nothing in a pipe, reads stdin.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from this file.")] = None,
    token_ids: Annotated[str | None, typer.Option(help="The prompt as token ids, e.g. '1 2 3'.")] = None,
    model: flags.Model = None,
    method: flags.Method = None,
    fields: flags.Set = None,
    allow: flags.Allow = None,
    deny: flags.Deny = None,
    profile: flags.Profile = None,
    n: Annotated[int, typer.Option("--n", help="Samples; the prompt is read once for all.")] = 1,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    quantize: flags.Quantize = None,
    invariant: flags.Invariant = False,
    json: flags.Json = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Complete a prompt. stdout is exactly the new text, streamed; statistics go to stderr.

    With --json: one object {"text", "tokens", "finish_reason", "stats"}, for --n above 1 a list of them.
    """
    if n < 1:
        raise ValueError(f"--n {n} is not allowed: at least 1")
    text = read_prompt(prompt, prompt_file, token_ids)
    chosen = flags.method(*flags.from_profile(profile, method, flags.assignments(fields, allow, deny)))
    from segue.api import make_settings

    make_settings(**settings)  # wrong settings are told before a model is loaded
    options = flags.placed(profile, dtype=dtype, device=device, backend=backend, quantize=quantize, invariant=invariant)
    lm = segue.model(model, **options)
    flags.check_profile(profile, lm.lm)
    flags.tell_quality(lm.lm, model)
    if json:
        answers = lm.generate(text, chosen, n=n, **settings)
        data = [answer.as_dict() for answer in answers]
        print(report.as_json(data[0] if n == 1 else data))
    elif n == 1:
        answer = report.stream(lm.stream(text, chosen, **settings), report.show)
        _finish(lm.lm.tokenizer, answer.stats)
    else:
        for number, answer in enumerate(lm.generate(text, chosen, n=n, **settings), start=1):
            report.show(f"=== {number} of {n} ===\n{answer.text}\n")
            report.note(report.statistics(answer.stats))


def read_prompt(prompt: str | None, file: Path | None, token_ids: str | None) -> str | list[int]:
    """The one prompt that was given. A newline at the end of a file or of stdin is not part of it."""
    given = [name for name, value in (("PROMPT", prompt), ("--prompt-file", file), ("--token-ids", token_ids))
             if value is not None]  # fmt: skip
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are two prompts: give one of them")
    if token_ids is not None:
        try:
            return [int(part) for part in token_ids.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"--token-ids {token_ids!r} is not a list of whole numbers, e.g. '1 2 3'") from None
    if file is not None:
        return flags.read_text(file).removesuffix("\n")
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise ValueError("no prompt: give it as an argument, with --prompt-file or on stdin")
    return flags.text_of(sys.stdin.buffer.read(), "stdin").removesuffix("\n")


def _finish(tokenizer: Any, stats: Any) -> None:
    if sys.stdout.isatty():
        report.show("\n")
    if tokenizer is None:
        report.note("the model has no tokenizer, so there is no text: --json shows the tokens")
    report.note(report.statistics(stats))
