"""`segue tune`: find the fastest lossless method for a model, prompts and machine, and keep it as a profile."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from segue.cli import flags, report


def tune(
    prompts: Annotated[str, typer.Option("--prompts", help="JSONL of your prompts, or the name of a suite.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The profile to write.")] = Path("profile.json"),
    model: flags.Model = None,
    methods: Annotated[str | None, typer.Option(help="Methods to choose from; all lossless ones if left out.")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft model, for the methods that need one.")] = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens at most per answer.")] = 64,
    limit: Annotated[int | None, typer.Option(help="So many prompts, evenly spaced.")] = 24,
    rounds: Annotated[int, typer.Option(help="Rounds of the final.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the choice of candidates.")] = 0,
    variants: Annotated[
        str | None, typer.Option(help="Other forms of the model to try: int8,llama.cpp/q8_0,... or all. May be lossy.")
    ] = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    json: flags.Json = False,
) -> None:
    """Tune decoding: successive halving over methods and their fields, each measured alternately with plain decoding.

    Killed, it goes on where it was. `--profile FILE` of generate, chat and run uses what was found.
    """
    from segue import catalog
    from segue.bench import tune as tuning
    from segue.bench.contest import Ours
    from segue.bench.suites import suite
    from segue.data import Settings
    from segue.profile import Profile

    names = [name.strip() for name in methods.split(",")] if methods else None
    for name in names or ():
        catalog.find(name)
    if rounds < 1:
        raise ValueError(f"--rounds {rounds} is not allowed: at least 1")
    flags.check_output(output)
    chosen = suite(prompts, limit)
    settings = Settings(max_tokens=max_tokens, temperature=chosen.temperature, seed=seed)
    forms = flags.variants(variants)
    import segue

    lm = segue.model(model, dtype=dtype, device=device)
    own, kind = (lm.lm.backend, lm.lm.precision), lm.lm.precision
    forms = [form for form in forms if (form.backend, form.precision) != own]
    pool = tuning.candidates(names, draft is not None, seed, forms)
    loaded = {None: lm} | {form: segue.model(model, **form.options()) for form in forms}
    room = lm.lm.longest_prompt(max_tokens)
    ids = [lm.encode(prompt)[-room:] for prompt in chosen.prompts]

    def make(candidate: tuning.Candidate) -> Ours:
        values = dict(candidate.fields)
        if draft is not None and "draft" in {f.name for f in catalog.find(candidate.method).fields}:
            values["draft"] = draft
        return Ours(candidate.name, loaded[candidate.variant], catalog.build(candidate.method, **values))

    setting = {
        "model": lm.lm.name,
        "precision": kind,
        "variants": [str(form) for form in forms],
        "draft": draft,
        "max_tokens": max_tokens,
        "prompts": hashlib.sha256(repr(ids).encode()).hexdigest()[:16],
        "version": segue.__version__,
    }
    journals = [output.with_suffix(f".rung{number}.jsonl") for number in range(8)]
    strict = kind == "float32" and not settings.temperature
    with report.progress() as say:
        verdict = tuning.tune(
            pool, make, ids, settings, strict=strict, setting=setting, rounds=rounds, say=say,
            journal=lambda number: journals[number],
        )  # fmt: skip
    import torch

    from segue.models.cost import processor

    winner = verdict.winner
    fields = dict(winner.fields) | ({"draft": draft} if draft and winner.method == "draft_model" else {})
    found = {"ratio_to_plain": verdict.ratio, "ranking": verdict.ranking, "tried": verdict.tried, "prompts": len(ids)}
    best = loaded[winner.variant].lm
    profile = Profile(
        winner.method,
        fields,
        best.name,
        best.precision,
        torch.get_num_threads(),
        processor(),
        str(winner.variant) if winner.variant else None,
        found,
    )
    profile.write(output)
    for journal in journals:
        journal.unlink(missing_ok=True)
    if json:
        from dataclasses import asdict

        print(report.as_json(asdict(profile)))
        return
    print("\n".join([*tuning.words(verdict, len(ids)), f"written to {output}; use it with --profile {output}"]))
