"""`segue doctor`: what a forward costs here, and how far plain decoding is from what the machine allows."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from segue.cli import flags, report


def doctor(
    model: flags.Model = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again instead of reading the cache.")] = False,
    json: flags.Json = False,
) -> None:
    """Measure the machine and a model on it: bandwidth, the cost of a forward by its rows, and what follows."""
    import segue
    from segue.bench.machine import diagnose, machine
    from segue.models.cost import cost_of

    lm: Any = segue.model(model, dtype=dtype, device=device).lm
    found = diagnose(lm, machine(), cost_of(lm, refresh=refresh))
    if json:
        print(report.as_json(found))
        return
    print("\n".join(words(found)))


def words(found: dict[str, Any]) -> list[str]:
    """The findings, a line each."""
    box, cost = found["machine"], found["cost"]
    first = cost["seconds"][0]
    lines = [
        f"machine     {box['processor']}, {box['cores']} cores, {box['threads']} threads, {', '.join(box['flags'])}",
        f"bandwidth   {box['bandwidth'] / 1e9:.1f} GB/s reading; last-level cache {box['cache_bytes'] / 2**20:.0f} MiB",
        f"model       {found['model']} in {found['dtype']}, {found['bytes_per_token'] / 1e6:.1f} MB of weights a token",
        f"limit       {found['limit_tokens_per_second']:,.0f} tokens/s by memory bandwidth",
        f"plain       {found['plain_tokens_per_second']:,.0f} tokens/s, {found['share_of_limit']:.1%} of the limit",
        "rows        " + "  ".join(f"{k:>5}" for k in cost["rows"]),
        "ms          " + "  ".join(f"{1000 * s:5.2f}" for s in cost["seconds"]),
        "t(k)/t(1)   " + "  ".join(f"{s / first:5.2f}" for s in cost["seconds"]),
        f"so          verifying 7 guesses pays from {found['break_even']:.2f} accepted tokens a round",
        f"remembered  {cost['file'] or 'nowhere: the cache folder cannot be written'} (--refresh measures again)",
    ]
    return lines + [f"advice      {text}" for text in found["advice"]]
