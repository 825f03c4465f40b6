"""The texts that go with the embedded models: their card and the licences of what they learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from segue.train.corpus import SOURCES
from segue.train.recipes import LanguageModel, find_recipe

FORMS: Mapping[str, str] = {
    "tales": "prose",
    "books": "prose",
    "wiki": "prose, articles under `= Title =`",
    "questions": "`Context: …\\nQuestion: …\\nAnswer: …`",
    "maths": "`Question: …\\nAnswer: …`, closed by `#### result`",
    "translation": "`German: …\\nEnglish: …` and `English: …\\nGerman: …`, several pairs in a row",
    "programs": "`# task\\ndef …`",
    "stdlib": "Python source",
    "dialogue": "`User: …\\nAssistant: …`",
    "instructions": "`Instruction: …\\nInput: …\\nOutput: …`",
    "rust": "`# Title`, then prose and listings",
}


INTRODUCTION = """\
Two small Llama models trained from random weights on the data sets below, to have a real target and a real
draft at hand without a download. They are test pieces for decoding methods: they keep to the forms they were
trained on, but their sentences are half-formed and they know almost nothing."""

LOADING = """\
Both are `LlamaForCausalLM` with tied embeddings, rotary positions (base 10000), RMS norm and bfloat16 weights,
and share one byte-level BPE tokenizer (no unknown token, digits one by one; `<|endoftext|>` begins and ends
documents, `<|pad|>` pads). Plain `AutoModelForCausalLM.from_pretrained` loads them."""

MEASURES = """\
Perplexity per token and bits per byte (lower is better), in windows of 1024 tokens that do not overlap, on at
most 120,000 characters per source. `accepted` is the mean of sum(min(p, q)) over positions, the chance that
speculative sampling at temperature 1 accepts a token of mini-draft for mini; `same top token` is that for
greedy decoding. Held out are two books of the child shelf (tales), the validation books (books), WikiText-2
test (wiki), English XQuAD (questions), the test splits of GSM8K, Tatoeba, MBPP and SGD, four library modules
(stdlib), the 252 user-oriented tasks of Self-Instruct, and two chapters of the Rust book."""

SAMPLING = """\
Written by mini at temperature 0.8, up to 64 tokens, first draw, unedited. The prompt is the opening of a
held-out document; what the model wrote follows the mark ▶."""

LATER = (
    " EARLIER is the model of the run above, from whose weights and whose place in the data (`training.json`) a run "
    "goes on."
)

LIMITS = """\
- They saw few tokens (see Training), a few per parameter: invented words and broken code are common.
- Facts, sums and translations are mostly wrong; nothing these models say should be relied on.
- English, plus short German sentences. Other languages come back from the tokenizer but were not learned.
- No summarisation data: `Summarize:` prompts are continued as prose.
- Contexts end at 2048 tokens; only the last part of training saw more than 512.
- No safety training. The books are a century old and carry the views of their time."""


@dataclass(frozen=True)
class Sample:
    """What a model wrote after a held-out prompt."""

    source: str
    prompt: str
    written: str


def model_card(
    summaries: Sequence[Mapping[str, Any]],
    agreed: Mapping[str, Mapping[str, float]],
    samples: Iterable[Sample],
    models: Sequence[Any],
) -> str:
    """The card of a target and its draft, from their run summaries and loaded models, in that order."""
    target, draft = summaries
    parts = [
        "# Model card: mini and mini-draft",
        INTRODUCTION,
        "## Architecture",
        _architecture(models),
        LOADING,
        "## Training",
        _training(target, draft),
        "## Data",
        _data(target, draft),
        "Prompts should have one of these forms. Licences and credits: LICENSE-DATA.md.",
        "## Held-out results",
        MEASURES,
        _results(target, draft, agreed),
        "## Samples",
        SAMPLING,
        *(_sample(sample) for sample in samples),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def paragraph(text: str) -> str:
    """Text in lines of at most 110 characters."""
    return fill(text, 110, break_long_words=False, break_on_hyphens=False)


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def _architecture(models: Sequence[Any]) -> str:
    def row(title: str, field: str) -> list[object]:
        return [title, *(getattr(model.config, field) for model in models)]

    sizes = [f"{sum(weight.numel() for weight in model.parameters()):,}" for model in models]
    return table(
        ["", "mini", "mini-draft"],
        [
            ["parameters", *sizes],
            row("vocabulary", "vocab_size"),
            row("width", "hidden_size"),
            row("layers", "num_hidden_layers"),
            row("query heads", "num_attention_heads"),
            row("key-value heads", "num_key_value_heads"),
            row("head width", "head_dim"),
            row("inner width", "intermediate_size"),
            row("positions", "max_position_embeddings"),
        ],
    )


def _recipe(summary: Mapping[str, Any]) -> LanguageModel:
    recipe = find_recipe(summary["recipe"])
    if not isinstance(recipe, LanguageModel):
        raise ValueError(f"recipe {recipe.name!r} makes no language model; this card is of a target and its draft")
    return recipe


def _training(target: Mapping[str, Any], draft: Mapping[str, Any]) -> str:
    recipe, student = _recipe(target), _recipe(draft)
    made = target["made_on"]
    rows = [
        [what, f"{leg['tokens']:,}", f"{leg['steps']:,}", leg["minutes"], leg["seed"]]
        for run in (target, draft)
        for what, leg in (
            *((f"{leg['recipe']}, run {number}", leg) for number, leg in enumerate(run.get("earlier", ()), 1)),
            (f"`{run['command']}`", run),
        )
    ]
    return (
        table(["run", "tokens seen", "steps", "minutes", "seed"], rows)
        + "\n\n"
        + paragraph(
            f"Muon (rate {recipe.muon_lr:g}) for the hidden matrices, AdamW (rate {recipe.adam_lr:g}) for embeddings "
            f"and norms, {recipe.batch_tokens:,} tokens per step, bfloat16 autocast. In every run the rates "
            f"warm up over the first {recipe.warm_until:.0%} of the budget, hold, and fall linearly to 0 from "
            f"{recipe.decay_from:.0%} on. "
            f"Sequences have {recipe.length} tokens, {recipe.long_length} from {recipe.long_from:.0%} on. mini-draft "
            f"is distilled from mini: {student.distil:g} × KL(mini ‖ mini-draft) + {1 - student.distil:g} × "
            f"cross-entropy on the data, {student.batch_tokens:,} tokens per step; its embeddings start as the leading "
            "principal directions of mini's." + (LATER if target.get("earlier") or draft.get("earlier") else "")
        )
        + "\n\n"
        + paragraph(
            f"Made on: {made['processor']}, {made['threads']} threads of a machine shared with other work, no "
            f"accelerator; Python {made['python']}, torch {made['torch']}, transformers {made['transformers']}. The "
            "number of tokens in a given time depends on the machine, so the commands make similar models elsewhere, "
            "not the same bits."
        )
    )


def _data(target: Mapping[str, Any], draft: Mapping[str, Any]) -> str:
    mixture = _recipe(target).mixture
    return table(
        ["source", "what", "share of tokens", "times read (mini, draft)", "form", "licence"],
        [
            [name, SOURCES[name].origin, f"{share:.1%}", f"{target['epochs'][name]}, {draft['epochs'][name]}",
             FORMS[name], SOURCES[name].licence]
            for name, share in mixture.items()
        ],
    )  # fmt: skip


def _results(target: Mapping[str, Any], draft: Mapping[str, Any], agreed: Mapping[str, Mapping[str, float]]) -> str:
    lines = []
    for name, big in target["heldout"].items():
        small, both = draft["heldout"][name], agreed[name]
        lines.append(
            [name, f"{big['perplexity']:.2f}", f"{small['perplexity']:.2f}", f"{big['bits_per_byte']:.3f}",
             f"{small['bits_per_byte']:.3f}", f"{both['overlap']:.1%}", f"{both['greedy']:.1%}"]
        )  # fmt: skip
    head = ["source", "perplexity mini", "mini-draft", "bits per byte mini", "mini-draft", "accepted", "same top token"]
    return table(head, lines)


def _sample(sample: Sample) -> str:
    fence = "~~~~"
    return f"{sample.source}:\n\n{fence}text\n{sample.prompt}▶{sample.written}\n{fence}"


def data_licences(names: Iterable[str]) -> str:
    """Licence and credit of each source the models were trained on."""
    rows = [[name, SOURCES[name].origin, SOURCES[name].licence, SOURCES[name].credit] for name in names]
    return (
        "# Data the embedded models were trained on\n\n"
        "The models hold weights only; no data set is shipped with them. Each source keeps its own terms:\n\n"
        + table(["source", "what", "licence", "credit"], rows)
        + "\n\nChanges made to the data: cut to length, put into the prompt forms of MODEL_CARD.md, WikiText's spaced\n"
        "punctuation joined, the calculator marks of GSM8K removed.\n\n"
        "Licence texts: creativecommons.org/licenses/by-sa/4.0, /by-sa/3.0, /by/4.0, /by/2.0/fr; "
        "docs.python.org/3/license.html;\nopensource.org/license/mit; apache.org/licenses/LICENSE-2.0.\n"
    )
