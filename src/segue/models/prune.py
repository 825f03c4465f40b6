"""Draft models by depth pruning: chosen layers of a teacher at its full width, as a checkpoint of their own.

What sets a draft model's latency is its depth, so a draft that is to be cheap keeps the width and loses layers
(Decoding Speculative Decoding, 2402.01528). Embeddings, norms and head stay the teacher's. The folder is a usual
transformers checkpoint: it can be trained further before it drafts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segue.models.transformers.layers import decoder_layers, skipping
from segue.models.transformers.load import bare

BOUNDARIES = ("max_window_layers", "first_k_dense_replace")  # numbers of a config that count the first so many layers
PROBE = 24  # tokens on which the written checkpoint is compared with the teacher


def spread(layers: int, count: int) -> list[int]:
    """`count` of so many layers, evenly spaced, the first and the last among them (only the first for one)."""
    if not 1 <= count <= layers:
        raise ValueError(f"{count} of {layers} layers cannot be kept: give a number from 1 to {layers}")
    if count == 1:
        return [0]
    return [round(i * (layers - 1) / (count - 1)) for i in range(count)]


def keep_layers(source: str | os.PathLike[str] | None, keep: Sequence[int] | int, folder: Path) -> dict[str, Any]:
    """Write the teacher `source` with only the layers `keep` (or so many, evenly spaced) to `folder`, which must not be
    there yet; whole or not at all. Gives the facts of what was written.

    The written checkpoint is loaded again and must give the teacher's logits with the other layers skipped: ValueError
    for a family whose layers are tied to their place by more than the config says.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already: remove it or name another folder")
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {folder.absolute().parent}")
    name, network, tokenizer = bare(source)
    stack = decoder_layers(network)
    count = len(stack)
    chosen = spread(count, keep) if isinstance(keep, int) else check(keep, count, name)
    ids = torch.randint(
        network.config.get_text_config().vocab_size, (1, PROBE), generator=torch.Generator().manual_seed(0)
    )
    wanted = _logits(network, ids, tuple(chosen))
    _cut(network, stack, chosen)
    staging = folder.with_name(folder.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        network.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        for file in staging.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone
        _compare(name, wanted, _logits(bare(staging)[1], ids, None))
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    text = network.config.get_text_config()
    return {
        "teacher": name,
        "kept": chosen,
        "teacher_layers": count,
        "width": text.hidden_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "folder": str(folder),
    }


def check(keep: Sequence[int], count: int, name: str) -> list[int]:
    """The layers to keep, ascending; ValueError where one does not exist or stands twice."""
    wrong = next((i for i in keep if not 0 <= i < count), None)
    if wrong is not None:
        raise ValueError(f"layer {wrong} does not exist: {name} has {count} layers (0 to {count - 1})")
    if not keep or any(a >= b for a, b in pairwise(keep)):
        given = ",".join(map(str, keep)) or "no layer"
        raise ValueError(f"{given} cannot be kept: name at least one layer, each once, in ascending order")
    return list(keep)


def _cut(network: Any, stack: nn.ModuleList, keep: list[int]) -> None:
    """Take the other layers out of the network and of its config."""
    config, count = network.config.get_text_config(), len(stack)
    for key, value in list(config.to_dict().items()):
        if "layer" in key and isinstance(value, list) and len(value) == count:  # layer_types, no_rope_layers, ...
            setattr(config, key, [value[i] for i in keep])
    for key in BOUNDARIES:
        first = getattr(config, key, None)
        if isinstance(first, int):
            setattr(config, key, sum(i < first for i in keep))
    config.num_hidden_layers = len(keep)
    kept = [stack[i] for i in keep]
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", place)  # noqa: B010
    path = next(path for path, module in network.named_modules() if module is stack)
    parent, _, last = path.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.ModuleList(kept))


@torch.no_grad()
def _logits(network: Any, ids: torch.Tensor, layers: tuple[int, ...] | None) -> torch.Tensor:
    """(T, V) of one text, by the given layers alone."""
    if layers is None:
        return network(input_ids=ids, use_cache=False).logits[0]  # type: ignore[no-any-return]
    with skipping(network, layers):
        return _logits(network, ids, None)


def _compare(name: str, wanted: torch.Tensor, got: torch.Tensor) -> None:
    room = 8 * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
    if not torch.allclose(wanted, got, rtol=0, atol=room):
        raise ValueError(
            f"{name} cannot be cut: with fewer layers its checkpoint computes something else than the teacher with the "
            f"others skipped (logits differ by {float((wanted - got).abs().max()):.2g}): its layers depend on where "
            "they stand"
        )
