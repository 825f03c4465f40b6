"""`segue serve`: the server behind an API that OpenAI's clients speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.address import LOCAL, listen
from segue.cli import flags

PANEL = "Limits"


def serve(
    model: flags.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    name: Annotated[str | None, typer.Option("--served-name", help="What clients call the model.")] = None,
    embedder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Encoder for /v1/embeddings: a folder, or minilm for the packaged one."),
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Cross-encoder for /v1/rerank; cosines of --embedder without.")
    ] = None,
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
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Origin whose pages may ask from a browser, or *; repeatable."),
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
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Processes of Ray that each hold the model.", rich_help_panel=flags.MANY)
    ] = None,
    worker_cpus: flags.WorkerCpus = None,
    address: flags.Address = None,
) -> None:
    """Serve a model to OpenAI's clients: /v1/completions, /v1/chat/completions and what belongs to them; with
    --embedder and --reranker also /v1/embeddings and /v1/rerank.

    A request names its method ("method", "method_fields") or a profile; --method and --set are for those that do not.
    Fields that name files or models can only be set here.

    With --replicas, Ray Serve spreads requests over whole servers. Each has its own limits, keeps prompts for itself
    (a conversation may be read again by another) and gives its own figures at /metrics, with its name as a label: a
    scrape shows one of them. Logs go into Ray's files. With --address, host and port are those of the head node.
    """
    if replicas is None:
        flags.only_with("--replicas", worker_cpus=worker_cpus, address=address)
    given = flags.assignments(fields, allow, deny)
    flags.method(method, given)  # what is wrong is told before a model is loaded
    _check_library()
    from segue.api import DEFAULT_METHOD
    from segue.profile import read_profile
    from segue.serve.limits import Limits
    from segue.serve.recipe import Recipe
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
    if replicas is None:
        listen(host, port).close()  # told before a model is loaded, which takes its time
    if not keys and host not in LOCAL:
        print(f"note: no API key is set: everybody who reaches {host} may ask", flush=True)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "backend": backend, "quantize": quantize}
    recipe = Recipe(
        model,
        flags.placed(first, **options, invariant=invariant),
        method=method or DEFAULT_METHOD,
        fields=given,
        profiles=known,
        limits=limits,
        name=name,
        keys=tuple(keys),
        prefix_bytes=prefix_bytes,
        max_running=max_running,
        kv_bytes=kv_bytes,
        json_log=json_log,
        embedder=embedder,
        reranker=reranker,
        cors=tuple(cors or ()),
    )
    if replicas is not None:
        from segue.serve.replicas import serve as run_replicas

        run_replicas(recipe, host, port, replicas=replicas, cpus=worker_cpus or 1, address=address)
        return
    app = recipe.make()
    flags.check_profile(first, app.state.worker.model.lm)
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
