"""Small tokenizers of every kind that is written to GGUF, trained on a few sentences of twelve languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers as tf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = Path(__file__).parents[2] / "data"
LANGUAGES = {r["lang"]: r["text"] for r in map(json.loads, (DATA / "languages.jsonl").read_text().splitlines())}
PROMPTS = [json.loads(line)["prompt"] for line in (DATA / "prompts.jsonl").read_text().splitlines()]
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # as the tokenizer.json of Llama 3 and of Qwen 2 spell it
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
REGEX = {
    "llama3": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{TAIL}",
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{TAIL}",
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BYTE_LEVEL = {  # the name in GGUF, and the parts
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None, False),
    "smollm": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        None,
        False,
    ),
    "llama-bpe": ("llama3", None, True),
    "smaug-bpe": ("llama3", None, False),
    "qwen2": ("qwen2", normalizers.NFC(), False),
}
PREFIXES = ("each", "always", "first", "never")
KINDS = (*BYTE_LEVEL, *PREFIXES)


def make(kind: str) -> Any:
    return sentencepiece(kind) if kind in PREFIXES else byte_level(kind)


def byte_level(kind: str) -> Any:
    """Without special tokens around a text, but for llama-bpe, which has one in front."""
    cut, normalizer, whole = BYTE_LEVEL[kind]
    if isinstance(cut, str):
        bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(REGEX[cut]), "isolated"), bare])
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|endoftext|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*LANGUAGES.values(), *PROMPTS], trainer)
    if whole:  # words that are tokens though no merges make them: only they show that words are taken whole
        state = json.loads(tokenizer.to_str())
        for word in ("Ġquixotically", "Zyzzyva"):
            state["model"]["vocab"][word] = len(state["model"]["vocab"])
        tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<tool>", "<tool>+")])
    if kind == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    named = {"bos_token": "<|begin|>"} if kind != "qwen2" else {}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", chat_template=TEMPLATE, **named
    )


def sentencepiece(prefix: str) -> Any:
    """As Llama 2's: bytes for what is no token, every way to make a token among the merges, in order of the tokens."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=900, max_token_length=8, limit_alphabet=300, show_progress=False)
    lines = [line for text in LANGUAGES.values() for line in text.splitlines()]
    trained.train_from_iterator(lines, trainer)
    characters = [t for t, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1]) if len(t) == 1]
    made = ["".join(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    special = ["<unk>", "<s>", "</s>"]
    order = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(made), *dict.fromkeys(characters)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(order))}
    ways = [(t[:i], t[i:]) for t in dict.fromkeys(made) for i in range(1, len(t)) if {t[:i], t[i:]} <= set(vocab)]
    if prefix in ("always", "first"):
        return tf.LlamaTokenizer(vocab=vocab, merges=ways, legacy=prefix == "always", chat_template=TEMPLATE)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=ways, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    front = []
    if prefix == "each":
        front = [normalizers.Prepend("▁")]
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )
