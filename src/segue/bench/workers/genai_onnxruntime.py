"""onnxruntime-genai on the CPU, exported by its own model builder. Kinds are the precisions that the builder offers:
int8 and int4 are weight-only, their blocks and their embeddings as the builder decides."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime_genai as og

PACKAGES = ("onnxruntime-genai", "onnxruntime", "transformers", "torch")
FORMATS = {"fp32": "fp32", "int8": "int8", "int4": "int4"}


def export(folder: str, out: str, form: str) -> list[str]:
    """What to run after `python -m`."""
    return [*("onnxruntime_genai.models.builder", "-m", "model", "-i", folder, "-o", out), *("-p", form, "-e", "cpu")]


def load(out: str, kind: str, threads: int, eos: list[int]) -> Model:
    """A model that was exported."""
    config = og.Config(out)
    session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"eos_token_id": eos, "decoder": {"session_options": session}}}))
    return Model(og.Model(config))


class Model:
    """Every answer has a generator, and so a cache, of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def answer(self, prompt: list[int], max_tokens: int, ignore_eos: bool, temperature: float, seed: int) -> list[int]:
        """New tokens."""
        length = len(prompt) + max_tokens
        options: dict[str, Any] = {"max_length": length, "min_length": length if ignore_eos else 0, "do_sample": False}
        if temperature:
            options |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "random_seed": seed}
        params = og.GeneratorParams(self.model)
        params.set_search_options(**options)
        generator = og.Generator(self.model, params)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        tokens: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        return tokens
