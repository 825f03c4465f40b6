"""Small networks trained beside a model, which draft for it: what they share, and how they are kept.

On disk a drafter is a folder with `drafter.json` (its kind and shape, the base model's name and identity, what it was
trained on) and `model.safetensors`. A drafter drafts only for the weights that it was trained on.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segue.data import CapabilityError, DraftTree, Want
from segue.models.folder import replace_folder
from segue.models.heads.lesson import Lesson, Marks
from segue.models.lm import LM
from segue.models.threads import on_threads

FORMAT = "segue-drafter/1"
REHEARSALS = 6  # of which the fastest counts
DEEP = 4  # depth of the deeper of the drafts that are rehearsed
SHEET, WEIGHTS = "drafter.json", "model.safetensors"


@dataclass(frozen=True)
class Shape:
    """The numbers that fix a network; subclasses add their own. The first two are the base model's."""

    width: int  # D of its hidden states
    vocab_size: int  # V

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{name}={value} is not allowed: at least 1")


class DraftNetwork(nn.Module):
    """Base of the kinds. The base model's table and head are not part of it: they are asked for through the LM, so that
    they are stored once and stay as they are."""

    kind: ClassVar[str]
    shape_type: ClassVar[type[Shape]]

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape = shape
        self.facts: dict[str, Any] = {}  # what it was trained on
        self.shortlist = 0  # it guesses among so many first tokens of the vocabulary; 0: among all
        self.first, self.further = 0.0, 0.0  # seconds of a draft's first pass, and of each one more

    @property
    def reads(self) -> tuple[int, ...]:
        """States of the base model that it drafts from, as numbered by Want.hidden."""
        return (-1,)

    def passes(self, depth: int) -> int:
        """How often it runs for a draft that deep."""
        return 1

    def rehearse(self, lm: LM, passes: int) -> None:
        """The work of one draft of so many passes, for the clock."""
        raise NotImplementedError

    def seconds(self, depth: int) -> float:
        """Of a draft that deep."""
        return self.first + self.further * (self.passes(depth) - 1) if depth > 0 else 0.0

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape})"

    @classmethod
    def fresh(cls, lm: LM, seed: int = 0, **numbers: int) -> Self:
        """An untrained one for `lm`; `numbers` are those of its shape."""
        check(cls.kind, lm)
        known = {f.name: f.default for f in fields(cls.shape_type)[2:]}
        strange = next((name for name in numbers if name not in known), None)
        if strange is not None:
            raise ValueError(f"{cls.kind} has no number {strange!r}: it has {', '.join(known)}")
        for name, value in numbers.items():
            if isinstance(known[name], bool):
                if value not in (0, 1):
                    raise ValueError(f"{name}={value} is not allowed: 0 (no) or 1 (yes)")
                numbers[name] = bool(value)
        network = cls.of(cls.shape_type(lm.width, lm.vocab_size, **numbers))
        network.draw(torch.Generator().manual_seed(seed))
        return network

    @classmethod
    def of(cls, shape: Shape) -> Self:
        """One of that shape, whose weights are still to be set; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # biases keep torch's own beginning
            return cls(shape)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Random weights: matrices by the width of what they read, but for those that start at zero."""
        for weight in self.parameters():
            if weight.ndim >= 2 and bool(weight.any()):
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)

    def learn(self, lm: LM, lesson: Lesson) -> Marks:
        """How well it guesses a batch, with gradients."""
        raise NotImplementedError

    def at_home(self, states: Tensor) -> Tensor:
        """States of the base model in this network's own precision."""
        return states.to(self.dtype)


def check(kind: str, lm: LM) -> None:
    """CapabilityError where a model's backend gives nothing that a drafter could draft from."""
    if reason := lm.refusal(kind, ("hidden states",)):
        raise CapabilityError(reason)


def save(network: DraftNetwork, lm: LM, folder: Path, facts: dict[str, Any]) -> None:
    """Write a drafter of `lm` in bfloat16, replacing what was there in one step."""
    staging = folder.with_name(folder.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    weights = {name: w.detach().to(torch.bfloat16).contiguous().cpu() for name, w in network.state_dict().items()}
    save_file(weights, staging / WEIGHTS)
    sheet = {
        "format": FORMAT,
        "kind": network.kind,
        "base": {"name": lm.name, "identity": lm.identity},
        "shape": asdict(network.shape),
        "shortlist": network.shortlist,
        "training": facts,
    }
    (staging / SHEET).write_text(json.dumps(sheet, indent=1) + "\n")
    replace_folder(staging, folder)


def read_sheet(folder: Path) -> dict[str, Any]:
    """What a drafter's folder says about itself; ValueError where it is none."""
    path = folder / SHEET
    if not path.is_file():
        raise ValueError(
            f"{folder} is no trained drafter: it has no {SHEET} (segue train drafter makes such folders), nor the "
            "config.json of published heads (mlp_speculator, medusa, eagle)"
        )
    try:
        sheet = json.loads(path.read_text())
        known = sheet["format"] == FORMAT and isinstance(sheet["shape"], dict) and sheet["base"]["identity"] is not None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}): copy the drafter again or train it anew"
        ) from None
    if not known:
        raise ValueError(f"{path} has format {sheet['format']!r}, and this version reads {FORMAT!r}")
    return dict(sheet)


def load(folder: Path, cls: type[DraftNetwork], lm: LM) -> DraftNetwork:
    """The drafter of a folder, for `lm`. ValueError where it is another kind's, another model's, or damaged."""
    sheet = read_sheet(folder)
    if sheet["kind"] != cls.kind:
        raise ValueError(f"{folder} holds a drafter for {sheet['kind']}, not for {cls.kind}")
    base = sheet["base"]
    if base["identity"] != lm.identity:
        raise ValueError(
            f"the drafter in {folder} was trained for {base['name']} ({base['identity']}) and cannot draft for "
            f"{lm.name} ({lm.identity or 'unknown weights'}): train one with segue train drafter {cls.kind} -m MODEL"
        )
    try:
        network = cls.of(cls.shape_type(**sheet["shape"]))
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the drafter in {folder} is damaged ({reason}): copy it again or train it anew") from None
    network.facts = dict(sheet["training"])
    network.shortlist = int(sheet.get("shortlist", 0))
    return fitted(network, lm)


def fits(shape: Shape, lm: LM) -> None:
    """ValueError where a drafter of that shape cannot draft for `lm`."""
    if (shape.width, shape.vocab_size) != (lm.width, lm.vocab_size):
        raise ValueError(
            f"a drafter for states of {shape.width} numbers and {shape.vocab_size} tokens cannot draft for {lm.name}, "
            f"which has {lm.width} and {lm.vocab_size}"
        )


def fitted(network: DraftNetwork, lm: LM) -> DraftNetwork:
    """A network ready to draft for `lm`, on its device; on a CPU not in 16 bits, in which
    so small products are no faster."""
    fits(network.shape, lm)
    halved = lm.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if lm.device.type == "cpu" and halved else lm.dtype
    network = network.to(device=lm.device, dtype=dtype).eval().requires_grad_(False)
    network.first = _rehearsed(network, lm, 1)
    if network.passes(DEEP) > 1:
        more = _rehearsed(network, lm, network.passes(DEEP)) - network.first
        network.further = max(more, 0.0) / (network.passes(DEEP) - 1)
    return network


def _rehearsed(network: DraftNetwork, lm: LM, passes: int) -> float:
    """Seconds of a draft as it is at work: behind a forward of the base model, which takes the processor's caches."""
    sequence, times = lm.sequence(), []
    tree = DraftTree.chain([min(set(range(lm.vocab_size)) - lm.eos_ids)] * 4)
    try:
        for _ in range(REHEARSALS):
            lm.forward([(sequence, tree, Want())])
            with torch.inference_mode(), on_threads(lm.threads_for(1)):
                begin = time.perf_counter()
                network.rehearse(lm, passes)
                times.append(time.perf_counter() - begin)
    finally:
        sequence.release()
    return min(times)
