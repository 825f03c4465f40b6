"""openvino-genai on the CPU, exported by optimum-intel.

Kinds: fp32 computes in float32 throughout, bf16 is the same file at the engine's speed settings; int8 and int4 are
weight-only, all else as the engine chooses for the machine. Prompt lookup drafts with the fields of the engine's own
samples. Its cache of prompts is off: it would remember the round before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

PACKAGES = ("openvino-genai", "openvino", "optimum-intel", "nncf", "transformers", "torch")
LOOKUP = " prompt lookup"
FORMATS = {"fp32": "fp32", "bf16": "fp32", "int8": "int8", "int4": "int4"}
FORMATS |= {kind + LOOKUP: FORMATS[kind] for kind in ("fp32", "bf16")}
PROPERTIES: dict[str, dict[str, Any]] = {
    "fp32": {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
}


def export(folder: str, out: str, form: str) -> list[str]:
    """What to run after `python -m`."""
    task = ("--task", "text-generation-with-past", "--weight-format", form)
    return ["optimum.commands.optimum_cli", "export", "openvino", "--model", folder, *task, out]


def load(out: str, kind: str, threads: int, eos: list[int]) -> Model:
    """A model that was exported."""
    schedule = genai.SchedulerConfig()
    schedule.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": threads, **PROPERTIES.get(kind.removesuffix(LOOKUP), {})}
    lookup = kind.endswith(LOOKUP)
    if lookup:
        properties["prompt_lookup"] = True
    return Model(genai.LLMPipeline(out, "CPU", scheduler_config=schedule, **properties), eos, lookup)


class Model:
    """A loaded pipeline."""

    def __init__(self, pipeline: Any, eos: list[int], lookup: bool) -> None:
        self.pipeline, self.eos, self.lookup = pipeline, eos, lookup

    def answer(self, prompt: list[int], max_tokens: int, ignore_eos: bool, temperature: float, seed: int) -> list[int]:
        """New tokens."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = max_tokens, ignore_eos, False
        config.eos_token_id, config.stop_token_ids = self.eos[0] if self.eos else -1, set(self.eos)
        config.do_sample = bool(temperature)
        if temperature:
            config.temperature, config.rng_seed = temperature, seed
        if self.lookup:
            config.num_assistant_tokens, config.max_ngram_size = 5, 3
        out = self.pipeline.generate(ov.Tensor(np.array([prompt], dtype=np.int64)), config)
        return [int(token) for token in out.tokens[0]]
