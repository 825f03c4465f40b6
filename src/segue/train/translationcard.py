"""The model card of an embedded translator, in its own folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from segue.train.corpus import SOURCES
from segue.train.modelcard import paragraph, table
from segue.train.recipes import Translation, find_recipe

INTRODUCTION = """\
A small T5 trained from random weights to translate short German sentences into English, so that there is a real
encoder-decoder at hand without a download: for methods that decode from a source, and for searches that are judged by
a reference. It is a test piece, trained for minutes: frequent words in short sentences come out right, rarer ones are
often replaced by others, and of anything longer nothing is to be expected (see Samples)."""

LOADING = """\
`T5ForConditionalGeneration` with gated layers (SiLU), tied embeddings, relative positions and bfloat16 weights. The
byte-level BPE tokenizer learned both languages together (no unknown token, digits one by one); `<|endoftext|>` ends
sources and translations, `<|pad|>` starts the decoder. Plain `AutoModelForSeq2SeqLM.from_pretrained` loads it. The
source is the German sentence alone, one at a time, with its punctuation."""

SPLIT = """\
Held out are the valid and test parts of the data set, one pair for each German sentence. A training pair was dropped
where its German sentence has the same words as a held-out one in any order, or differs from it by one character put in,
left out or exchanged; case and punctuation do not count. Parts of the data set share no English sentence. valid was
only looked at during training, test not before its end."""

MEASURES = """\
BLEU and chrF by sacrebleu, its defaults (13a, mixed case; chrF2), one reference each, translations by transformers'
generate. `news` is NTREX-128: news of four times the length and another vocabulary, which nothing in training
resembles: the figure says that this model cannot translate it."""

SAMPLES = "The first held-out sentences of test and of news, greedy, unedited."

LIMITS = """\
- Content words are often wrong, in fluent English: do not take a translation for what the German says.
- Trained on sentences of at most seven English words; of longer ones it drops parts or repeats itself.
- Many a German sentence has several right translations; du, ihr and Sie all become "you".
- Names but the most frequent ("Tom", "Mary") are spelled as they seem likely, numbers may be wrong.
- German to English only. No safety training."""


def translation_card(
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    samples: Iterable[tuple[str, str, str, str]],
    note: str = "",
) -> str:
    """The card, from a run's summary, the model's config.json, samples of (set, source, written, reference), and what
    is to be said of this run alone."""
    parts = [
        f"# Model card: {summary['recipe']}",
        paragraph(INTRODUCTION),
        "## Architecture",
        _architecture(summary, config),
        paragraph(LOADING),
        "## Training",
        _training(summary),
        *([paragraph(note)] if note else []),
        "## Data",
        _data(summary),
        paragraph(SPLIT),
        "## Held-out results",
        paragraph(MEASURES),
        _results(summary),
        "## Samples",
        SAMPLES,
        table(["set", "German", "written", "reference"], samples),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _architecture(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    names = {
        "vocab_size": "vocabulary",
        "d_model": "width",
        "num_layers": "encoder layers",
        "num_decoder_layers": "decoder layers",
        "num_heads": "heads",
        "d_kv": "head width",
        "d_ff": "inner width",
    }
    rows = [[title, f"{config[name]:,}"] for name, title in names.items()]
    return table(["", summary["recipe"]], [["parameters", f"{summary['parameters']:,}"], *rows])


def _training(summary: Mapping[str, Any]) -> str:
    recipe, made = find_recipe(summary["recipe"]), summary["made_on"]
    assert isinstance(recipe, Translation)
    row = [f"`{summary['command']}`", f"{summary['pairs']:,}", summary["epochs"], f"{summary['tokens']:,}",
           f"{summary['steps']:,}", summary["minutes"], summary["seed"]]  # fmt: skip
    head = ["command", "pairs", "times read", "English tokens", "steps", "minutes", "seed"]
    return (
        table(head, [row])
        + "\n\n"
        + paragraph(
            f"Muon (rate {recipe.muon_lr:g}) for the matrices, AdamW (rate {recipe.adam_lr:g}) for embeddings, "
            f"position biases and norms; about {recipe.batch_tokens:,} English tokens a step, in batches of pairs "
            f"of about one length; cross-entropy, label smoothing {recipe.smoothing:g}, dropout "
            f"{recipe.shape.dropout_rate:g}. The rates rise for {recipe.warm_until:.0%} of the budget, hold, and fall "
            f"linearly to 0 from {recipe.decay_from:.0%} on."
        )
        + "\n\n"
        + paragraph(
            f"Made on: {made['processor']}, {made['threads']} threads of a machine shared with other work, no "
            f"accelerator; Python {made['python']}, torch {made['torch']}, transformers {made['transformers']}."
        )
    )


def _data(summary: Mapping[str, Any]) -> str:
    source = SOURCES["translation"]
    row = [source.origin, source.licence, source.credit, f"{summary['pairs']:,}"]
    return table(["what", "licence", "credit", "training pairs"], [row]) + (
        "\n\nMeasured on, but not trained on: NTREX-128 (CC BY-SA 4.0; Federmann et al. 2022, "
        "github.com/MicrosoftTranslator/NTREX)."
    )


def _results(summary: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{score['bleu']:.1f}", f"{score['chrf']:.1f}", f"{score['sentences']:,}"]
        for name, score in summary["heldout"].items()
    ]
    return table(["set", "BLEU", "chrF", "sentences"], rows)
