"""The training corpus: each public data set becomes plain-text documents in one prompt form.

The forms are what the embedded models understand, so they are part of the interface:

- tales, books: running prose, paragraphs separated by a blank line
- wiki: encyclopedia paragraphs, WikiText's spaced punctuation joined again
- questions: ``Context: ...\nQuestion: ...\nAnswer: ...``, further questions on the same context below
- maths: ``Question: ...\nAnswer: ...``, the answer worked out and closed by ``#### result``
- translation: ``German: ...\nEnglish: ...`` or the other way round, several pairs per document
- programs: ``# task\n`` and the function that solves it; stdlib: Python source files as they are
- dialogue: ``User: ...\nAssistant: ...`` turn by turn
- instructions: ``Instruction: ...\nInput: ...\nOutput: ...``, without the input line where it is empty
- rust: ``# title`` and the paragraphs and listings of a chapter
"""

from __future__ import annotations

import io
import json
import re
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

FRONT_MATTER = 5_000  # characters skipped at the start of a general book: title pages and contents
BOOK_SLICE = 60_000  # characters kept of a general book, so that many authors fit in a small corpus
FILE_SLICE = 60_000  # characters kept of one source file
STDLIB_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "__pycache__",
                  "pydoc_data", "turtledemo", "ensurepip", "msilib"}  # fmt: skip
STDLIB_HELDOUT = {"fractions.py", "heapq.py", "shlex.py", "textwrap.py"}
TALES_HELDOUT = {"Anne of the Island", "The Cowardly Lion of Oz"}  # the child shelf has no valid part
RUST_HELDOUT = ("ch07", "ch16")  # chapters of the Rust book kept out of training


@dataclass(frozen=True)
class Source:
    """One data set: what it is called, on which terms, by whom, and how to read its two parts."""

    name: str
    origin: str
    licence: str
    credit: str
    train: Callable[[Path], Iterator[str]]
    heldout: Callable[[Path], Iterator[str]]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file, packed with zstd where its name says so."""
    with _open_text(path) as lines:
        for line in lines:
            yield json.loads(line)


def _open_text(path: Path) -> io.TextIOBase:
    if not path.is_file():
        raise ValueError(f"the corpus needs {path}, which is not there; point data at the data set folder")
    if path.suffix != ".zst":
        return path.open(encoding="utf-8")
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(f"reading {path} needs the package zstandard; pip install 'segue[train]'") from error
    return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf-8")


def _tales(heldout: bool) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        for shard in sorted((data / "gutenberg").glob("train.child-*.jsonl.zst")):
            yield from (book["text"] for book in rows(shard) if (book["title"] in TALES_HELDOUT) == heldout)

    return read


def _books(data: Path) -> Iterator[str]:
    for shard in sorted((data / "gutenberg").glob("train.general-*.jsonl.zst")):
        for book in rows(shard):
            if len(book["text"]) > 2 * FRONT_MATTER:
                yield book["text"][FRONT_MATTER : FRONT_MATTER + BOOK_SLICE]


def _books_heldout(data: Path) -> Iterator[str]:
    for book in rows(data / "gutenberg" / "valid.jsonl.zst"):
        yield book["text"][FRONT_MATTER : FRONT_MATTER + BOOK_SLICE]


def join_wikitext(line: str) -> str:
    """Undo WikiText's tokenisation: ``1 @,@ 000 men , " so "`` becomes ``1,000 men, "so"``."""
    line = re.sub(r" @(.)@ ", r"\1", line.strip())
    line = re.sub(r'" (.*?) "', r'"\1"', line)
    line = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b)", r"\1", line)
    return re.sub(r"([(\[$]) ", r"\1", line)


def _wikitext(part: str) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        article: list[str] = []
        with _open_text(data / "wikitext2" / f"{part}.raw.txt.zst") as lines:
            for line in lines:
                if re.fullmatch(r" = [^=].* = \n?", line) and article:
                    yield "\n\n".join(article)
                    article = []
                if line.strip():
                    article.append(join_wikitext(line))
        if article:
            yield "\n\n".join(article)

    return read


def _squad_contexts(data: Path) -> dict[str, str]:
    return {row["context_id"]: row["context"] for row in rows(data / "squad_sample" / "contexts.jsonl.zst")}


def _wiki(data: Path) -> Iterator[str]:
    yield from _wikitext("valid")(data)
    heldout = {row["context_id"] for row in rows(data / "squad_sample" / "heldout.jsonl.zst")}
    yield from (text for name, text in _squad_contexts(data).items() if name not in heldout)


def _questions(contexts: Mapping[str, str], questions: Iterator[dict[str, Any]]) -> Iterator[str]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for row in questions:
        grouped[row["context_id"]].append(f"Question: {row['question']}\nAnswer: {row['answers'][0]['text']}")
    for name, asked in grouped.items():
        yield f"Context: {contexts[name]}\n" + "\n".join(asked)


def _squad(part: str) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        return _questions(_squad_contexts(data), rows(data / "squad_sample" / f"{part}.jsonl.zst"))

    return read


def _xquad(data: Path) -> Iterator[str]:
    folder = data / "xquad"
    contexts = {row["context_id"]: row["context"] for row in rows(folder / "contexts.jsonl.zst")}
    english = (row for row in rows(folder / "questions.jsonl.zst") if row["lang"] == "en")
    return _questions(contexts, english)


def _maths(part: str) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        for row in rows(data / "decoding_prompts" / f"gsm8k_{part}.jsonl.zst"):
            yield f"Question: {row['question']}\nAnswer: {re.sub('<<.*?>>', '', row['answer'])}"

    return read


def _translation(part: str) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        pairs = [(row["en"], de) for row in rows(data / "tatoeba_de_en" / f"{part}.jsonl.zst") for de in row["de"]]
        stream = iter(pairs)
        number = 0
        while block := list(islice(stream, 4 + number % 13)):
            if number % 2:
                yield "\n".join(f"English: {en}\nGerman: {de}" for en, de in block)
            else:
                yield "\n".join(f"German: {de}\nEnglish: {en}" for en, de in block)
            number += 1

    return read


def _programs(split: str) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        for row in rows(data / "decoding_prompts" / "mbpp.jsonl.zst"):
            if row["split"] == split:
                code = "\n".join(line.rstrip() for line in row["code"].expandtabs(4).splitlines())
                yield f"# {row['text']}\n{code}\n"

    return read


def _stdlib(heldout: bool) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if STDLIB_SKIPPED.intersection(inside.parts) or (str(inside) in STDLIB_HELDOUT) != heldout:
                continue
            try:
                yield path.read_text(encoding="utf-8")[:FILE_SLICE]
            except UnicodeDecodeError:
                continue

    return read


def _dialogue(part: str) -> Callable[[Path], Iterator[str]]:
    names = {"user": "User", "system": "Assistant"}

    def read(data: Path) -> Iterator[str]:
        for row in rows(data / "sgd" / f"{part}.jsonl.zst"):
            yield "\n".join(f"{names[turn['speaker']]}: {turn['text']}" for turn in row["turns"])

    return read


def _instructions(name: str) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        for row in rows(data / "decoding_prompts" / f"{name}.jsonl.zst"):
            for case in row["instances"]:
                given = f"Input: {case['input']}\n" if case["input"] else ""
                yield f"Instruction: {row['instruction']}\n{given}Output: {case['output']}"

    return read


def _rust(heldout: bool) -> Callable[[Path], Iterator[str]]:
    def read(data: Path) -> Iterator[str]:
        for chapter in rows(data / "rustbook" / "en.jsonl.zst"):
            if chapter["id"].startswith(RUST_HELDOUT) == heldout:
                parts = (f"# {s['title']}\n\n" + "\n\n".join(s["paragraphs"]) for s in chapter["sections"])
                yield "\n\n".join(parts)

    return read


TALES, GENERAL = "Project Gutenberg, child shelf", "Project Gutenberg, general shelf"
BOOKS_CREDIT = (
    "English books by authors who died in 1950 or earlier, gutenberg.org; collected by rcdm-uga/Gutenberg_Text"
)
SQUAD_CREDIT = "Rajpurkar et al. 2016, on paragraphs by the contributors of Wikipedia; packed by ocastel/exact-extract"
SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source("tales", TALES, "public domain in the United States", BOOKS_CREDIT, _tales(False), _tales(True)),
        Source("books", GENERAL, "public domain in the United States", BOOKS_CREDIT, _books, _books_heldout),
        Source("wiki", "Wikipedia: SQuAD paragraphs, WikiText-2 validation articles", "CC BY-SA 4.0; CC BY-SA 3.0",
               SQUAD_CREDIT + "; WikiText-2: Merity et al. 2016, on articles by the contributors of Wikipedia",
               _wiki, _wikitext("test")),
        Source("questions", "SQuAD v1.1 training questions", "CC BY-SA 4.0",
               SQUAD_CREDIT + "; held out: XQuAD, Artetxe et al. 2020", _squad("train"), _xquad),
        Source("maths", "GSM8K", "MIT", "Cobbe et al. 2021, github.com/openai/grade-school-math",
               _maths("train"), _maths("test")),
        Source("translation", "Tatoeba German-English pairs", "CC BY 2.0 FR", "the contributors of tatoeba.org",
               _translation("train"), _translation("test")),
        Source("programs", "MBPP", "CC BY 4.0", "Austin et al. 2021, github.com/google-research, folder mbpp",
               _programs("train"), _programs("test")),
        Source("stdlib", "Python standard library", "PSF License 2", "Python Software Foundation, python.org",
               _stdlib(False), _stdlib(True)),
        Source("dialogue", "Schema-Guided Dialogue", "CC BY-SA 4.0",
               "Rastogi et al. 2020, github.com/google-research-datasets/dstc8-schema-guided-dialogue",
               _dialogue("train"), _dialogue("test")),
        Source("instructions", "Self-Instruct seed tasks", "Apache-2.0",
               "Wang et al. 2022, github.com/yizhongw/self-instruct",
               _instructions("self_instruct_seed_tasks"), _instructions("self_instruct_user_252")),
        Source("rust", "The Rust Programming Language", "MIT or Apache-2.0",
               "Klabnik, Nichols and the Rust community, github.com/rust-lang/book", _rust(False), _rust(True)),
    )
}  # fmt: skip
