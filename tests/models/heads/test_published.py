"""Published heads are read to the letter: against the authors' formulas, written out here without a module of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import segue
from segue import catalog
from segue.cli import main
from segue.data import Settings
from segue.laws.base import decode
from segue.laws.worlds import World, network_world
from segue.models.heads import save, trained
from segue.models.heads.blockwise import BlockwiseHeads
from segue.models.heads.medusa import MedusaHeads
from segue.models.heads.speculator import Speculator

INNER = 24
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("llama")


@pytest.fixture(autouse=True)
def forget(world: World) -> None:
    world.lm.trained.clear()


def drawn(seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * shape[-1] ** -0.5


def write(folder: Path, config: dict[str, Any], weights: Weights, file: str = "model.safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    else:
        torch.save(weights, folder / file)
    return folder


def speculator_config(world: World, stages: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator", "emb_dim": world.lm.width,
        "inner_dim": INNER, "n_predict": stages, "n_candidates": 5, "top_k_tokens_per_head": [5] * stages,
        "torch_dtype": "float16", "vocab_size": world.lm.vocab_size, **more,
    }  # fmt: skip


def speculator_weights(world: World, stages: int, inner: int = INNER, *, tied: bool = False) -> Weights:
    draw, weights = drawn(), Weights()
    for stage in range(stages):
        if stage == 0 or not tied:
            weights |= {
                f"speculator.emb.{stage}.weight": draw(world.lm.vocab_size, inner),
                f"speculator.head.{stage}.weight": 4 * draw(world.lm.vocab_size, inner),
                f"speculator.ln.{stage}.weight": 1 + draw(inner),
                f"speculator.ln.{stage}.bias": draw(inner),
            }
        if stage < 2 or not tied:
            weights[f"speculator.proj.{stage}.weight"] = draw(inner, inner if stage else world.lm.width)
    return weights


def norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def published_speculator(weights: Weights, config: dict[str, Any], state: Tensor, tokens: list[int]) -> list[Tensor]:
    """The logits of every stage, as foundation-model-stack computes them: its LayerNormParameterized takes no mean."""
    n = config["n_predict"]
    state_weight = 0.5 ** (0.5 / n)
    emb_weight = math.sqrt(1 - state_weight**2)
    inner = config["inner_dim"] or config["emb_dim"]
    if config.get("scale_input"):
        state = norm(state) / 2**0.5
    rows = []
    for i, token in enumerate(tokens):
        own, project = (0, min(i, 1)) if config.get("tie_weights") else (i, i)
        z = weights[f"speculator.emb.{own}.weight"][token] * emb_weight * math.sqrt(inner / 2)
        state = weights[f"speculator.proj.{project}.weight"] @ state * state_weight + z
        state = norm(state) * weights[f"speculator.ln.{own}.weight"] + weights[f"speculator.ln.{own}.bias"]
        state = 0.5 * state * (1 + torch.erf(state / 2**0.5))
        rows.append(weights[f"speculator.head.{own}.weight"] @ state)
    return rows


@pytest.mark.parametrize(
    "more",
    [{}, {"scale_input": True, "tie_weights": True}, {"tie_weights": True}, {"inner_dim": 0}],
    ids=["apart", "scaled and tied", "tied", "inner as wide as the model"],
)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_speculator_says_what_the_published_formula_says(
    world: World, tmp_path: Path, more: dict[str, Any], file: str
) -> None:
    config = speculator_config(world, 4, **more)
    weights = speculator_weights(world, 4, config["inner_dim"] or world.lm.width, tied=more.get("tie_weights", False))
    read = trained(world.lm, Speculator, write(tmp_path / "heads", config, weights, file))
    # A state far from centred, of which a norm that takes the mean away would make something else.
    state = torch.randn(world.lm.width) + 2.0
    tokens = [3, 90, 17, 44]
    states = read.begin(state[None])
    for stage, expected in enumerate(published_speculator(weights, config, state, tokens)):
        states, logits = read(stage, states, torch.tensor([tokens[stage]]))
        torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-5)


def test_small_states_are_normalised_with_the_published_epsilon(world: World, tmp_path: Path) -> None:
    config, weights = speculator_config(world, 1), speculator_weights(world, 1)
    weights["speculator.emb.0.weight"] *= 0
    read = trained(world.lm, Speculator, write(tmp_path / "heads", config, weights))
    state = torch.randn(world.lm.width) * 1e-3  # as large as the root of epsilon
    (expected,) = published_speculator(weights, config, state, [0])
    torch.testing.assert_close(
        read(0, read.begin(state[None]), torch.tensor([0]))[1][0], expected, rtol=1e-4, atol=1e-5
    )


def medusa_weights(world: World, heads: int, layers: int) -> Weights:
    draw, weights, width = drawn(1), Weights(), world.lm.width
    for head in range(heads):
        for layer in range(layers):
            weights[f"{head}.{layer}.linear.weight"] = draw(width, width)
            weights[f"{head}.{layer}.linear.bias"] = draw(width)
        weights[f"{head}.{layers}.weight"] = 4 * draw(world.lm.vocab_size, width)
    return weights


def published_medusa(weights: Weights, heads: int, layers: int, state: Tensor) -> Tensor:
    rows = []
    for head in range(heads):
        x = state
        for layer in range(layers):
            y = weights[f"{head}.{layer}.linear.weight"] @ x + weights[f"{head}.{layer}.linear.bias"]
            x = x + y * y.sigmoid()
        rows.append(weights[f"{head}.{layers}.weight"] @ x)
    return torch.stack(rows)


def medusa_config(heads: int, layers: int) -> dict[str, Any]:
    return {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "medusa_num_heads": heads, "medusa_num_layers": layers}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_medusa_heads_say_what_the_published_formula_says(world: World, tmp_path: Path, layers: int, file: str) -> None:
    weights = medusa_weights(world, 3, layers)
    read = trained(world.lm, BlockwiseHeads, write(tmp_path / "heads", medusa_config(3, layers), weights, file))
    assert isinstance(read, MedusaHeads)
    state = torch.randn(world.lm.width)
    expected = published_medusa(weights, 3, layers, state)
    torch.testing.assert_close(read.guesses(world.lm, state, 3), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read.guesses(world.lm, state, 2), expected[:2], rtol=1e-4, atol=1e-5)


def test_medusa_heads_under_vllms_names_and_layers_held_once(world: World, tmp_path: Path) -> None:
    weights = medusa_weights(world, 2, 1)
    for name in list(weights):
        if name.endswith("bias"):
            weights[name] = torch.zeros_like(weights[name])
    state = torch.randn(world.lm.width)
    once = published_medusa(weights, 2, 1, state)
    theirs = {
        f"{'blocks' if 'linear' in name else 'lm_heads'}.{name[0]}{'.layers.0' * ('linear' in name)}.weight": weight
        for name, weight in weights.items()
        if name.endswith("weight")
    }
    assert sorted(theirs) == ["blocks.0.layers.0.weight", "blocks.1.layers.0.weight", "lm_heads.0.weight",
                              "lm_heads.1.weight"]  # fmt: skip
    config = {"model_type": "medusa", "num_heads": 2, "num_hidden_layers": 1, "vocab_size": world.lm.vocab_size}
    read = trained(world.lm, BlockwiseHeads, write(tmp_path / "vllm", config, theirs))
    torch.testing.assert_close(read.guesses(world.lm, state, 2), once, rtol=1e-4, atol=1e-5)
    # The authors' code has one and the same layer twice; a file without duplicates holds the first.
    shared = {name.replace(".1.weight", ".2.weight"): weight for name, weight in weights.items()}
    read = trained(world.lm, BlockwiseHeads, write(tmp_path / "shared", medusa_config(2, 2), shared))
    both = shared | {name.replace(".0.linear", ".1.linear"): w for name, w in shared.items() if "linear" in name}
    torch.testing.assert_close(
        read.guesses(world.lm, state, 2), published_medusa(both, 2, 2, state), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("method", ["mlp_speculator", "blockwise_parallel", "blockwise_drafts"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_published_heads_draft_and_change_no_token(
    world: World, tmp_path: Path, method: str, temperature: float
) -> None:
    if method == "mlp_speculator":
        folder = write(tmp_path / "heads", speculator_config(world, 3), speculator_weights(world, 3))
    else:
        folder = write(tmp_path / "heads", medusa_config(3, 1), medusa_weights(world, 3, 1), "medusa_lm_head.pt")
    settings = Settings(max_tokens=24, ignore_eos=True, temperature=temperature, seed=1)
    answers = decode(world.lm, catalog.build(method, heads=str(folder)), world.prompts, settings)
    for prompt, answer in zip(world.prompts, answers, strict=True):
        assert answer.stats.drafted > 0
        if not temperature:
            assert answer.tokens == world.oracle.answer(prompt, settings).tokens


def test_heads_that_fit_are_accepted_by_their_model(world: World, tmp_path: Path) -> None:
    """Medusa heads without an effect but for the model's own projection guess what a repeating model says."""
    lm = segue.model("mini-draft", dtype="float32").lm
    table = lm.head(torch.eye(lm.width)).T.contiguous()
    weights = {f"{head}.1.weight": table.clone() for head in range(2)}
    weights |= {f"{head}.0.linear.weight": torch.zeros(lm.width, lm.width) for head in range(2)}
    weights |= {f"{head}.0.linear.bias": torch.zeros(lm.width) for head in range(2)}
    folder = write(tmp_path / "heads", medusa_config(2, 1), weights)
    ours = BlockwiseHeads.fresh(lm, heads=2)  # untrained: at every place the model's own next token
    state = torch.randn(lm.width)
    read = trained(lm, BlockwiseHeads, folder)
    torch.testing.assert_close(read.guesses(lm, state, 2), ours.guesses(lm, state, 2), rtol=1e-4, atol=1e-4)


def test_the_command_line_takes_a_published_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = segue.model("mini-draft").lm
    draw = drawn()
    weights = {"0.0.linear.weight": draw(lm.width, lm.width), "0.1.weight": draw(lm.vocab_size, lm.width)}
    folder = write(tmp_path / "heads", medusa_config(1, 1), weights)
    arguments = ["generate", "Once upon a time", "-m", "mini-draft", "--max-tokens", "12"]
    assert main([*arguments, "--method", "plain"]) == 0
    expected = capsys.readouterr().out
    assert main([*arguments, "--method", "blockwise_parallel", "--set", f"heads={folder}"]) == 0
    assert capsys.readouterr().out == expected


def test_heads_of_other_sizes_are_refused_with_both_numbers(world: World, tmp_path: Path) -> None:
    width, size = world.lm.width, world.lm.vocab_size
    config = speculator_config(world, 2) | {"vocab_size": size + 4}
    folder = write(tmp_path / "wide", config, speculator_weights(world, 2))
    with pytest.raises(ValueError, match=rf"states of {width} numbers and {size + 4} tokens .* has {width} and {size}"):
        trained(world.lm, Speculator, folder)
    other = network_world("gpt2")
    weights = {"0.0.linear.weight": torch.ones(8, 8), "0.1.weight": torch.ones(size, 8)}
    folder = write(tmp_path / "narrow", medusa_config(1, 1), weights)
    with pytest.raises(ValueError, match=rf"states of 8 numbers .* has {other.lm.width} and"):
        trained(other.lm, BlockwiseHeads, folder)


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        ({"speculators_model_type": "eagle"}, "holds heads for jakiro, not for mlp_speculator"),
        ({"model_type": "llama"}, "no published heads of a format that is read .*model_type is 'llama'"),
        ({"model_type": "mlp_speculator", "emb_dim": "wide"}, "emb_dim of published heads is wide"),
        ({"medusa_num_heads": 0, "medusa_num_layers": 1}, "holds heads for blockwise_parallel, not for mlp_spec"),
    ],
)
def test_what_is_not_read_is_named(world: World, tmp_path: Path, config: dict[str, Any], fragment: str) -> None:
    folder = write(tmp_path / "heads", config, {"weight": torch.ones(1)})
    with pytest.raises(ValueError, match=fragment):
        trained(world.lm, Speculator, folder)


def test_incomplete_and_damaged_heads_are_named(world: World, tmp_path: Path) -> None:
    weights = speculator_weights(world, 2)
    del weights["speculator.ln.1.bias"]
    folder = write(tmp_path / "short", speculator_config(world, 2), weights)
    with pytest.raises(ValueError, match=r"incomplete: ln\.1\.bias is missing"):
        trained(world.lm, Speculator, folder)
    folder = write(tmp_path / "other", speculator_config(world, 2, inner_dim=8), speculator_weights(world, 2))
    with pytest.raises(ValueError, match=r"not what their config\.json says"):
        trained(world.lm, Speculator, folder)
    folder = write(tmp_path / "medusa", medusa_config(2, 1), medusa_weights(world, 1, 1))
    with pytest.raises(ValueError, match=r"incomplete: 1\.1\.weight is missing"):
        trained(world.lm, BlockwiseHeads, folder)
    with pytest.raises(ValueError, match="medusa_num_heads or num_heads of published heads is 0"):
        trained(world.lm, BlockwiseHeads, write(tmp_path / "none", medusa_config(0, 1), medusa_weights(world, 1, 1)))
    for file in ("model.safetensors", "pytorch_model.bin"):
        folder = write(tmp_path / file, speculator_config(world, 2), speculator_weights(world, 2), file)
        (folder / file).write_bytes(b"nothing of the sort")
        with pytest.raises(ValueError, match="is damaged"):
            trained(world.lm, Speculator, folder)
        (folder / file).unlink()
        with pytest.raises(ValueError, match="but no weights"):
            trained(world.lm, Speculator, folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        trained(world.lm, Speculator, folder)


def test_a_pickle_that_would_run_code_is_refused(world: World, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = write(tmp_path / "heads", medusa_config(1, 1), {"x": Evil()}, "medusa_lm_head.pt")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="is damaged"):
        trained(world.lm, BlockwiseHeads, folder)
    assert not (tmp_path / "ran").exists()


def test_a_drafter_of_ours_with_a_config_beside_it_is_ours(world: World, tmp_path: Path) -> None:
    save(Speculator.fresh(world.lm, stages=2, inner=8), world.lm, tmp_path / "ours", {"tokens": 5})
    (tmp_path / "ours" / "config.json").write_text("{}")
    assert trained(world.lm, Speculator, tmp_path / "ours").facts == {"tokens": 5}
