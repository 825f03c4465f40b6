"""What the machine allows: memory bandwidth, and the tokens per second that reading the weights leaves possible."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from segue.models.cost import Cost, processor
from segue.models.lm import LM
from segue.models.rows import rows_alone

BUFFER = 256 * 2**20  # bytes: far more than a last-level cache share
REPEATS = 8
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Machine:
    """The CPU side of a machine."""

    processor: str
    cores: int
    threads: int
    flags: tuple[str, ...]
    cache_bytes: int  # last level, shared; 0 where unknown
    bandwidth: float  # bytes per second, reading


def machine() -> Machine:
    """Look at this machine; takes about a second."""
    return Machine(
        processor(), os.cpu_count() or 1, torch.get_num_threads(), _flags(), _cache(), read_bandwidth(BUFFER, REPEATS)
    )


def read_bandwidth(size: int, repeats: int) -> float:
    """Bytes per second of summing a buffer with all threads: the best of several passes, since noise only slows."""
    buffer = torch.ones(size // 4, dtype=torch.float32)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - begin)
    return size / best


def diagnose(lm: LM, found: Machine, cost: Cost) -> dict[str, Any]:
    """Everything `segue doctor` says of one model in one form, as numbers and words."""
    size = lm.bytes_per_token
    limit = found.bandwidth / size
    plain = 1 / cost.step(1)
    return {
        "machine": asdict(found),
        "model": lm.name,
        "backend": lm.backend,
        "precision": lm.precision,
        "bytes_per_token": size,
        "limit_tokens_per_second": round(limit, 1),
        "plain_tokens_per_second": round(plain, 1),
        "share_of_limit": round(plain / limit, 4),
        "cost": {
            "rows": list(cost.rows),
            "seconds": list(cost.seconds),
            "threads": list(cost.threads),
            "file": str(cost.path) if cost.path else None,
        },
        "break_even": round(cost.step(8) / cost.step(1) - 1, 3),  # accepted tokens a round that pay for 7 guesses
        "rows_alone": _alone(lm),
        "advice": _advice(lm, found, size),
    }


def _alone(lm: LM) -> int:
    """The most rows, of those tried, that give bit for bit what each gives alone; 1 where two do not."""
    found = rows_alone(lm)
    most = 1
    for count in sorted(found):
        if not found[count]:
            break
        most = count
    return most


def _advice(lm: LM, found: Machine, size: int) -> list[str]:
    advice = []
    if lm.device.type != "cpu":
        advice.append("the model is on an accelerator: the bandwidth shown is the CPU's")
    if found.cache_bytes and size < found.cache_bytes:
        advice.append("the weights may sit in the last-level cache: memory bandwidth is then no limit")
    if lm.precision == "float32" and "avx512_bf16" in found.flags:
        advice.append("this processor has bfloat16: --dtype bfloat16 reads half the bytes (near ties may tip)")
    if lm.precision == "bfloat16" and not {"avx512_bf16", "amx_bf16"} & set(found.flags):
        advice.append("this processor has no bfloat16: --dtype float32 is faster")
    if found.threads > found.cores:
        advice.append(f"{found.threads} threads on {found.cores} cores: set OMP_NUM_THREADS={found.cores}")
    return advice


def _flags() -> tuple[str, ...]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    present = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return tuple(flag for flag in FLAGS if flag in present)


def _cache() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        units = {"K": 2**10, "M": 2**20, "G": 2**30}
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0))
    return max(sizes, default=0)
