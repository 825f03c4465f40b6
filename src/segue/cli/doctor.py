"""`segue doctor`: what a forward costs here, in each form of a model, and how far plain decoding is from the limit."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from segue.cli import flags, report


def doctor(
    model: flags.Model = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    quantize: flags.Quantize = None,
    variants: Annotated[
        str | None, typer.Option(help="Forms of the model to compare: int8,llama.cpp/q8_0,... or all.")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again instead of reading the cache.")] = False,
    json: flags.Json = False,
) -> None:
    """Measure the machine and a model on it: bandwidth, the cost of a forward by its rows, and what follows.

    --variants all compares every backend and precision beside the limit of the machine, with what quantizing costs.
    """
    forms = flags.variants(variants)
    import segue
    from segue.bench.machine import diagnose, machine
    from segue.bench.quality import quality
    from segue.models.cost import cost_of

    lm = segue.model(model, **flags.placed(None, dtype=dtype, device=device, backend=backend, quantize=quantize)).lm
    box = machine()
    found = diagnose(lm, box, cost_of(lm, refresh=refresh))
    found["variants"] = []
    for form in forms:
        other = segue.model(model, **form.options()).lm
        facts = diagnose(other, box, cost_of(other, refresh=refresh))
        found["variants"].append(
            {"variant": str(form), **facts, "quality": quality(other, lambda: lm) if form.lossy else None}
        )
    if json:
        print(report.as_json(found))
        return
    print("\n".join(words(found)))


def words(found: dict[str, Any]) -> list[str]:
    """The findings, a line each."""
    box, cost = found["machine"], found["cost"]
    first = cost["seconds"][0]
    name = f"{found['model']} in {found['precision']} by {found['backend']}"
    lines = [
        f"machine     {box['processor']}, {box['cores']} cores, {box['threads']} threads, {', '.join(box['flags'])}",
        f"bandwidth   {box['bandwidth'] / 1e9:.1f} GB/s reading; last-level cache {box['cache_bytes'] / 2**20:.0f} MiB",
        f"model       {name}, {found['bytes_per_token'] / 1e6:.1f} MB of weights a token",
        f"limit       {found['limit_tokens_per_second']:,.0f} tokens/s by memory bandwidth",
        f"plain       {found['plain_tokens_per_second']:,.0f} tokens/s, {found['share_of_limit']:.1%} of the limit",
        "rows        " + "  ".join(f"{k:>5}" for k in cost["rows"]),
        "ms          " + "  ".join(f"{1000 * s:5.2f}" for s in cost["seconds"]),
        "threads     " + ("  ".join(f"{t:>5}" for t in cost["threads"]) or "as they are"),
        "t(k)/t(1)   " + "  ".join(f"{s / first:5.2f}" for s in cost["seconds"]),
        f"so          verifying 7 guesses pays from {found['break_even']:.2f} accepted tokens a round",
        f"remembered  {cost['file'] or 'nowhere: the cache folder cannot be written'} (--refresh measures again)",
    ]
    if found["rows_alone"] > 1:
        lines.append(f"bits        up to {found['rows_alone']} rows together give the very bits that each gives alone")
    else:
        lines.append(
            "bits        a row's last bits depend on the rows beside it; --invariant of generate makes them not"
        )
    return lines + [f"advice      {text}" for text in found["advice"]] + _forms(found["variants"])


def _forms(forms: list[dict[str, Any]]) -> list[str]:
    if not forms:
        return []
    lines = [
        "",
        f"{'form':<18}{'MB/token':>9}{'limit/s':>10}{'plain/s':>9}{'share':>8}{'t(8)/t(1)':>11}{'threads':>9}{'alone':>7}",
    ]
    for form in forms:
        lines.append(
            f"{form['variant']:<18}{form['bytes_per_token'] / 1e6:>9.1f}{form['limit_tokens_per_second']:>10,.0f}"
            f"{form['plain_tokens_per_second']:>9,.0f}{form['share_of_limit']:>8.1%}{form['break_even'] + 1:>11.2f}"
            f"{'-'.join(map(str, sorted(set(form['cost']['threads'])))):>9}{form['rows_alone']:>7}"
        )
    for form in forms:
        if form["quality"]:
            lines.append(f"{form['variant']:<18}{form['quality']['words']}")
    return lines
