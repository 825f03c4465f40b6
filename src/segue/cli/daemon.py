"""`segue daemon fit`: energies of human texts for the method daemon."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import segue
from segue import catalog
from segue.cli import flags, report

app = typer.Typer()
DEFAULT = "sr2,sr3,sr4,tr8,tr16,tr32,diversity,information"


@app.callback(invoke_without_command=True)
def daemon(context: typer.Context) -> None:
    """Fit what the method daemon decodes by."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def fit(
    texts: Annotated[list[Path], typer.Argument(help="Human texts: JSONL files with a field text, or plain texts.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The energy to make (.json).")],
    model: flags.Model = None,
    metrics: Annotated[str, typer.Option(help="What shall be as in human texts; also coherence, module:function.")] = (
        DEFAULT
    ),
    prefix: Annotated[int, typer.Option(help="Tokens of every window that the model goes on from.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens that it writes, and that the human wrote.")] = 64,
    samples: Annotated[int, typer.Option(help="Continuations that it writes of each window.")] = 8,
    temperature: Annotated[float, typer.Option(help="At which it writes, now and when it is used.")] = 1.0,
    ridge: Annotated[float, typer.Option(help="Keeps weights finite where no draws are like human texts.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the continuations.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    json: flags.Json = False,
) -> None:
    """Weigh metrics so that the model's texts have those of human texts on average.

    Use it with: segue generate --method daemon --set energy=FILE
    """
    from segue.choose.parts.energy import check, fit
    from segue.decode.speculative.store.corpus import read_corpus

    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    check(names)
    if not 0 < temperature <= 100:
        raise ValueError(f"--temperature {temperature} is not allowed: above 0, at most 100")
    if not ridge >= 0:
        raise ValueError(f"--ridge {ridge} is not allowed: 0 or more")
    flags.check_output(output, force=force)
    corpus = read_corpus(texts, prompts=False, purpose="learn from")
    begun = time.perf_counter()
    lm = segue.model(model).lm
    ids = [document.ids(lm) for document in corpus.documents]
    with report.progress() as show:
        energy = fit(
            lm,
            ids,
            catalog.build("plain"),
            metrics=names,
            prefix=prefix,
            length=length,
            samples=samples,
            temperature=temperature,
            seed=seed,
            ridge=ridge,
            progress=partial(show, "writing as the model does"),
        )
    energy.facts["texts"] = [file["path"] for file in corpus.files]
    energy.save(output)
    facts = energy.facts
    if json:
        print(report.as_json({"file": str(output), "metrics": list(energy.metrics), "mu": list(energy.mu)} | facts
                             | {"seconds": round(time.perf_counter() - begun, 3)}))  # fmt: skip
        return
    print(f"{output}: {report.counted(len(energy.metrics), 'metric')}, {report.counted(facts['windows'], 'window')}")
    print(f"{'':12}{'mu':>9}{'human':>9}{'model':>9}{'tilted':>9}")
    for name, mu in zip(energy.metrics, energy.mu, strict=True):
        columns = (facts[of][name] for of in ("human", "model_mean", "tilted_mean"))
        print(f"{name:12}{mu:9.3f}" + "".join(f"{value:9.3f}" for value in columns))
