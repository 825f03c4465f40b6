"""The one training loop: batches in, gradient steps, checkpoints out, driven by a budget of minutes or tokens."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from segue.models.build import END_OF_TEXT, PADDING, fresh_llama, load_llama, project_embeddings, save_llama
from segue.train import checkpoints
from segue.train.batches import Reader, prepare, sequences_per
from segue.train.evaluate import heldout
from segue.train.journal import Journal
from segue.train.provenance import provenance
from segue.train.recipes import Recipe
from segue.train.tokenizer import special_id

CHECKPOINT_SECONDS = 120.0
EXPORT_SECONDS = 600.0  # between small evaluations, each with a usable model
SMALL_EVALUATION = 8192  # tokens per source


@dataclass(frozen=True)
class Budget:
    """How much training to do: exactly one of the two is set."""

    minutes: float | None
    tokens: int | None

    def spent(self, seconds: float, tokens: int) -> float:
        """The fraction of the budget used up, 1 or more when it is finished."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        assert self.tokens is not None
        return tokens / self.tokens

    def option(self) -> str:
        """The budget as it is typed."""
        return f"--minutes {self.minutes:g}" if self.minutes is not None else f"--tokens {self.tokens}"


@dataclass
class Run:
    """A training run in flight: everything a checkpoint must hold."""

    recipe: Recipe
    model: Any
    optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    reader: Reader
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "recipe": _fingerprint(self.recipe),
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "taken": self.reader.taken,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        if state["recipe"] != _fingerprint(self.recipe):
            raise ValueError(
                f"the checkpoints in {folder} were made by other numbers than recipe {self.recipe.name!r} has now; "
                "name another out folder"
            )
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.reader.taken = state["taken"]
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def _command(recipe: Recipe, budget: Budget) -> str:
    teacher = " --teacher TEACHER" if recipe.distil else ""
    return f"segue train {recipe.name} --data DATA{teacher} {budget.option()}"


def _fingerprint(recipe: Recipe) -> str:
    return repr([(f.name, getattr(recipe, f.name)) for f in fields(recipe) if f.name != "minutes"])


def run_recipe(
    recipe: Recipe,
    *,
    data: Path,
    out: Path,
    budget: Budget,
    resume: bool,
    teacher: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train `recipe` in the work folder `out` until `budget` is spent; return the summary.

    `out` receives tokens/, checkpoints/, log.jsonl, summary.json and the finished model in model/.
    """
    _keep_freed_memory()
    say(f"preparing the corpus in {out / 'tokens'}")
    shared = teacher / "tokenizer.json" if teacher else None
    tokenizer_file = prepare(data, out / "tokens", recipe.mixture, recipe.shape.vocab_size, recipe.seed, shared)
    guide = load_llama(teacher) if teacher else None
    run = _start(recipe, out, tokenizer_file, guide)
    saved = checkpoints.latest(out / "checkpoints", say)
    if saved is not None and not resume:
        raise ValueError(f"{out} already holds checkpoints; resume, or name another out folder")
    if saved is not None:
        run.restore(saved, out / "checkpoints")
        say(f"resuming at step {run.step} after {run.tokens:,} tokens and {run.seconds / 60:.1f} minutes")
    with Journal(out, recipe.name, run.step, say) as journal:
        try:
            _train(run, budget, guide, out, tokenizer_file, journal)
        except KeyboardInterrupt:
            checkpoints.save(out / "checkpoints", run.step, run.state())
            journal.say(f"stopped at step {run.step}; the same command continues from here")
            raise
        checkpoints.save(out / "checkpoints", run.step, run.state())
        save_llama(run.model, tokenizer_file, out / "model")
        journal.say("evaluating on the held-out parts")
        scores = heldout(run.model, out / "tokens", recipe.mixture)
        return journal.finish(
            {
                "recipe": recipe.name,
                "command": _command(recipe, budget),
                "seed": recipe.seed,
                "parameters": sum(weight.numel() for weight in run.model.parameters()),
                "budget": asdict(budget),
                "steps": run.step,
                "tokens": run.tokens,
                "minutes": round(run.seconds / 60, 2),
                "epochs": {name: round(value, 2) for name, value in run.reader.epochs().items()},
                "heldout": scores,
                "made_on": provenance(),
            }
        )


def _start(recipe: Recipe, out: Path, tokenizer_file: Path, guide: Any) -> Run:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model = fresh_llama(
        recipe.shape,
        torch.Generator().manual_seed(recipe.seed),
        end_of_text=special_id(tokenizer, END_OF_TEXT),
        padding=special_id(tokenizer, PADDING),
    )
    if guide is not None:
        project_embeddings(guide, model)
    hidden: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        (hidden if weight.ndim == 2 and "embed" not in name else rest).append(weight)
    muon = torch.optim.Muon(hidden, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)
    adam = torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return Run(recipe, model, (muon, adam), Reader(out / "tokens", recipe.mixture, recipe.seed))


def rate(recipe: Recipe, spent: float) -> float:
    """The factor on the learning rates: warm-up, plateau, linear decay to 0."""
    if spent < recipe.warm_until:
        return max(spent / recipe.warm_until, 0.02)
    return min(1.0, max(0.0, (1.0 - spent) / (1.0 - recipe.decay_from)))


def _train(run: Run, budget: Budget, guide: Any, out: Path, tokenizer_file: Path, journal: Journal) -> None:
    since_checkpoint = since_export = 0.0
    while (spent := budget.spent(run.seconds, run.tokens)) < 1.0:
        began = time.perf_counter()
        loss, norm = _step(run, guide, spent)
        took = time.perf_counter() - began
        run.seconds += took
        journal.step(run.step, loss, norm, run.tokens, run.seconds, budget.spent(run.seconds, run.tokens))
        since_checkpoint += took
        since_export += took
        if since_checkpoint > CHECKPOINT_SECONDS:
            checkpoints.save(out / "checkpoints", run.step, run.state())
            since_checkpoint = 0.0
        if since_export > EXPORT_SECONDS:
            save_llama(run.model, tokenizer_file, out / "model")
            scores = heldout(run.model, out / "tokens", run.recipe.mixture, limit=SMALL_EVALUATION)
            journal.scores(run.step, scores)
            since_export = 0.0


def _step(run: Run, guide: Any, spent: float) -> tuple[float, float]:
    recipe = run.recipe
    length = recipe.long_length if spent >= recipe.long_from else recipe.length
    micro = sequences_per(recipe.micro_tokens, length)
    passes = sequences_per(recipe.batch_tokens, length * micro)
    total = 0.0
    for _ in range(passes):
        batch = run.reader.batch(micro, length)  # (B, T + 1)
        loss, entropy = _loss(run.model, guide, batch, recipe.distil)
        torch.autograd.backward(loss / passes)
        total += entropy / passes
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip).item()
    factor = rate(recipe, spent)
    for optimiser, top in zip(run.optimisers, (recipe.muon_lr, recipe.adam_lr), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = top * factor
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    run.step += 1
    run.tokens += passes * micro * length
    return total, norm


def _loss(model: Any, guide: Any, batch: torch.Tensor, distil: float) -> tuple[torch.Tensor, float]:
    """The loss to minimise and the cross-entropy on the data alone."""
    inputs, targets = batch[:, :-1], batch[:, 1:].flatten()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float()  # (B * T, V)
    if guide is None:
        entropy = F.cross_entropy(logits, targets)
        return entropy, entropy.item()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = guide(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
    logp = logits.log_softmax(-1)
    entropy = F.nll_loss(logp, targets)
    divergence = F.kl_div(logp, wanted.clone(), log_target=True, reduction="batchmean")
    return distil * divergence + (1 - distil) * entropy, entropy.item()


def _keep_freed_memory() -> None:
    """Ask glibc to reuse large blocks, not return them to the system: a third more tokens per second."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 2**31 - 1)
