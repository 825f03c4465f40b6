"""`segue ui`: a page on which two methods write side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli import flags


def ui(
    model: flags.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any that is free.")] = 7860,
    reports: Annotated[
        list[Path] | None,
        typer.Option("--report", metavar="FILE", help="A page that segue bench wrote, to be shown; repeatable."),
    ] = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    quantize: flags.Quantize = None,
) -> None:
    """Open a playground: type a prompt, pick two methods, and see what each drafts, accepts and rejects.

    The page works offline. It loads nothing from other machines and tells them nothing.
    """
    files = list(reports or [])
    from segue.address import LOCAL, listen, url
    from segue.ui.listing import check_reports

    check_reports(files)  # what is wrong is told before a model is loaded
    _check_library()
    with listen(host, port) as listening:
        import segue
        from segue.ui.app import create_app, serve

        options: dict[str, Any] = {"dtype": dtype, "device": device, "backend": backend, "quantize": quantize}
        loaded = segue.model(model, **flags.placed(None, **options))
        if loaded.lm.tokenizer is None:
            raise ValueError(f"{loaded.lm.name} has no tokenizer: the playground is for text")
        flags.tell_quality(loaded.lm, model)
        if host not in LOCAL:
            print(f"note: everybody who reaches {host} may use the model; there are no keys", flush=True)
        app = create_app(loaded, files, host=host)
        print(f"the playground is at {url(host, listening)} (Ctrl-C ends it)", flush=True)
        serve(app, listening)


def _check_library() -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError('segue ui needs gradio: pip install "segue[ui]"')
