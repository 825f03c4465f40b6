"""`segue serve`: the server behind an API that OpenAI's clients speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli import flags

LOCAL = ("127.0.0.1", "localhost", "::1")
PANEL = "Limits"


def serve(
    model: flags.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    name: Annotated[str | None, typer.Option("--served-name", help="What clients call the model.")] = None,
    method: flags.Method = None,
    fields: flags.Set = None,
    allow: flags.Allow = None,
    deny: flags.Deny = None,
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="NAME=FILE",
            help="A profile that requests may name; the first serves those that do not.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line; SEGUE_API_KEYS brings more, separated by commas.")
    ] = None,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait.", rich_help_panel=PANEL)] = 128,
    max_running: Annotated[int, typer.Option(help="Answers written at a time.", rich_help_panel=PANEL)] = 64,
    max_prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.", rich_help_panel=PANEL)] = 8192,
    max_new_tokens: Annotated[int, typer.Option(help="New tokens of an answer.", rich_help_panel=PANEL)] = 4096,
    max_body_bytes: Annotated[int, typer.Option(help="Bytes of a request.", rich_help_panel=PANEL)] = 2_000_000,
    prefix_bytes: Annotated[
        int, typer.Option(min=0, help="Memory for prompts that others may begin with; 0: none.", rich_help_panel=PANEL)
    ] = 512_000_000,
    kv_bytes: Annotated[
        int | None,
        typer.Option(help="Memory for what requests read and write; half of what is free.", rich_help_panel=PANEL),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.", rich_help_panel=PANEL)] = 600.0,
    drain: Annotated[
        float, typer.Option(help="Seconds that open requests get after SIGTERM.", rich_help_panel=PANEL)
    ] = 30.0,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    quantize: flags.Quantize = None,
    invariant: flags.Invariant = False,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log each request as one JSON object a line.")] = False,
) -> None:
    """Serve a model to OpenAI's clients: /v1/completions, /v1/chat/completions and what belongs to them.

    A request names its method ("method", "method_fields") or a profile; --method and --set are for those that do not.
    Fields that name files or models can only be set here.
    """
    given = flags.assignments(fields, allow, deny)
    flags.method(method, given)  # what is wrong is told before a model is loaded
    _check_library()
    from segue.api import DEFAULT_METHOD, Model
    from segue.models.engine import Engine
    from segue.models.load import load
    from segue.models.prefixes import Prefixes
    from segue.profile import read_profile
    from segue.serve.app import create_app
    from segue.serve.choosing import Choosing
    from segue.serve.limits import Limits
    from segue.serve.running import read_keys
    from segue.serve.running import serve as run

    files = [_named(item) for item in profiles or []]
    known = {label: read_profile(path) for label, path in files}
    first = files[0][1] if files and method is None and not given else None
    method, given = flags.from_profile(first, method, given)
    limits = Limits(
        max_queue=max_queue,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        max_body_bytes=max_body_bytes,
        timeout=timeout,
        drain=drain,
    )
    keys = read_keys(api_key_file)
    if not keys and host not in LOCAL:
        print(f"note: no API key is set: everybody who reaches {host} may ask", flush=True)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "backend": backend, "quantize": quantize}
    # What is read in other pieces differs in the last bits, which `invariant` rules out: no prompt is kept then.
    lm = load(model, **flags.placed(first, **options, invariant=invariant))
    flags.check_profile(first, lm)
    choosing = Choosing(method or DEFAULT_METHOD, given, known, limits)
    app = create_app(
        Model(lm, prefixes=Prefixes(prefix_bytes) if prefix_bytes and not invariant else None),
        name=name or Path(lm.name).name,
        choosing=choosing,
        keys=keys,
        engine=lambda: Engine(max_running=max_running, kv_budget=kv_bytes),
        json_log=json_log,
    )
    run(app, host, port, drain=drain, json_log=json_log)


def _named(item: str) -> tuple[str, Path]:
    """A profile's name and its file."""
    label, equals, path = item.partition("=")
    return (label, Path(path)) if equals else (Path(item).stem, Path(item))


def _check_library() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f'segue serve needs {error.name}: pip install "segue[serve]"') from None
