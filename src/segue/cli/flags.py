"""Options that several commands share, and what they build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Folder, hub id, GGUF file or embedded model; 'mini' if left out."),
]
Method = Annotated[str | None, typer.Option(help="Decoding method; `segue methods` lists them.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A field of the method; repeatable.")
]
Allow = Annotated[str | None, typer.Option(help="Drafters that auto may choose from, e.g. prompt_lookup,lookahead.")]
Deny = Annotated[str | None, typer.Option(help="Drafters that auto leaves out.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or float64; what suits checkpoint and device if left out."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU where there is one if left out.")]
Backend = Annotated[str | None, typer.Option(help="transformers or llama.cpp; by the model if left out.")]
Quantize = Annotated[
    str | None,
    typer.Option(help="Fewer bits a weight, lossy: int8, int4; with llama.cpp f32, f16, q8_0, q4_0."),
]
Invariant = Annotated[
    bool, typer.Option("--invariant", help="Drafts change no bit of a row, in any precision; somewhat slower.")
]
Profile = Annotated[Path | None, typer.Option("--profile", help="Method and fields that segue tune found.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

MANY = "Many machines"
WorkerCpus = Annotated[
    int | None,
    typer.Option(min=1, help="Cores of each process, which are its threads; 1 if left out.", rich_help_panel=MANY),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="A cluster of Ray that runs already; if left out, one is started on this machine for this command.",
        rich_help_panel=MANY,
    ),
]


def only_with(option: str, **others: Any) -> None:
    """ValueError where an option was given that says something about another one, which was not."""
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} {value} says something about {option} only: give that, too")


def check_output(path: Path, *, force: bool = True, option: str = "-o") -> None:
    """ValueError where no file can be written to `path`, or, without `force`, where one is; for before the work."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file, e.g. {path / 'out'}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write {option} {path}: there is no folder {path.parent}")
    if path.exists() and not force:
        raise ValueError(f"{path} is there already: --force replaces it")


def assignments(items: list[str] | None, allow: str | None = None, deny: str | None = None) -> dict[str, str]:
    """The fields of a method from NAME=VALUE texts, and from the options that have their own name."""
    values = {name: value for name, value in (("allow", allow), ("deny", deny)) if value is not None}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"{item!r} is not NAME=VALUE, e.g. window=5")
        values[name] = value
    return values


def method(name: str | None, fields: dict[str, Any]) -> Any:
    """The method object. An unknown name is found out before torch is loaded."""
    from segue import catalog

    if name is not None:
        catalog.find(name)
    from segue.api import DEFAULT_METHOD

    return catalog.build(name or DEFAULT_METHOD, **fields)


def from_profile(path: Path | None, name: str | None, fields: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Method and fields of a profile, where one was given; both at once would leave open which of them counts."""
    if path is None:
        return name, fields
    if name is not None or fields:
        raise ValueError(
            "--profile brings a method and its fields: drop it, or drop --method, --set, --allow and --deny"
        )
    from segue.profile import read_profile

    profile = read_profile(path)
    return profile.method, profile.fields


def variants(text: str | None) -> list[Any]:
    """Forms of a model from their names; "all" for every one that works here."""
    from segue.models.variant import parse, worth_trying

    if text is None:
        return []
    return worth_trying() if text.strip() == "all" else [parse(part) for part in text.split(",")]


def placed(path: Path | None, **options: str | bool | None) -> dict[str, Any]:
    """How the model is loaded: by what was given, else as a profile found it best."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if path is None or {"dtype", "backend", "quantize"} & set(given):
        return given
    from segue.profile import read_profile

    return read_profile(path).options() | given


def tell_quality(lm: Any, source: str | None) -> None:
    """Say what a quantized model lost, measured once against the model as it is."""
    from segue.models.variant import LOSSY

    if lm.precision not in LOSSY or lm.tokenizer is None:
        return
    if source is not None and source.endswith(".gguf"):
        return  # there is nothing to compare it with
    import segue
    from segue.bench.quality import quality

    print(f"note: {lm.precision}: {quality(lm, lambda: segue.model(source).lm)['words']}", file=sys.stderr)


def check_profile(path: Path | None, lm: Any) -> None:
    """Tell the user where a profile was made for something else than what runs."""
    if path is None:
        return
    import torch

    from segue.profile import read_profile

    strange = read_profile(path).foreign(lm.name, lm.precision, torch.get_num_threads())
    if strange:
        print(f"note: {path} was made for {strange}; its choice may not be the best here", file=sys.stderr)


def text_of(data: bytes, source: str) -> str:
    """A text that a user hands over as bytes; ValueError names the place of the first byte that is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from None


def read_text(path: Path) -> str:
    return text_of(path.read_bytes(), str(path))
