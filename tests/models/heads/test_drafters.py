"""Drafters on disk: whole, bound to their model, refused where they are not what they should be."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import segue
from segue.laws.worlds import network_world
from segue.models.heads import KINDS, save, trained
from segue.models.heads.base import SHEET, WEIGHTS
from segue.models.heads.blockwise import BlockwiseHeads
from segue.models.heads.speculator import Speculator
from segue.models.lm import LM
from segue.models.transformers.identity import identity


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@pytest.fixture
def folder(lm: LM, tmp_path: Path) -> Path:
    save(BlockwiseHeads.fresh(lm, heads=2, inner=8), lm, tmp_path / "heads", {"tokens": 5})
    lm.trained.clear()
    return tmp_path / "heads"


def test_what_was_saved_is_read(lm: LM, folder: Path) -> None:
    written = BlockwiseHeads.fresh(lm, heads=2, inner=8)
    read = trained(lm, BlockwiseHeads, folder)
    assert read.facts == {"tokens": 5}
    assert read.shape == written.shape
    for name, weight in written.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight.to(torch.bfloat16).float()), name
    assert trained(lm, BlockwiseHeads, str(folder)) is read
    assert not any(weight.requires_grad for weight in read.parameters())


def test_fresh_weights_follow_from_the_seed_alone(lm: LM) -> None:
    """Also the biases, which torch draws; and its own random state is left alone."""
    first = BlockwiseHeads.fresh(lm, 3, heads=2, inner=8)
    torch.rand(5)
    before = torch.get_rng_state()
    again, other = (BlockwiseHeads.fresh(lm, seed, heads=2, inner=8) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in first.state_dict().items())
    assert not torch.equal(first.hidden.weight, other.hidden.weight)


def test_another_models_drafter_is_refused_with_both_names(folder: Path) -> None:
    other = network_world("llama", seed=1).lm
    with pytest.raises(ValueError, match=r"was trained for tiny-llama-0 .* cannot draft for tiny-llama-1"):
        trained(other, BlockwiseHeads, folder)


def test_another_kind_is_refused(lm: LM, folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a drafter for blockwise_parallel, not for mlp_speculator"):
        trained(lm, Speculator, folder)
    with pytest.raises(ValueError, match="blockwise_parallel was given, and mlp_speculator was to draft"):
        trained(lm, Speculator, BlockwiseHeads.fresh(lm))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": "segue-drafter/1"}'])
def test_a_damaged_sheet_is_named(lm: LM, folder: Path, damage: str) -> None:
    (folder / SHEET).write_text(damage)
    with pytest.raises(ValueError, match=r"drafter\.json is damaged"):
        trained(lm, BlockwiseHeads, folder)


def test_another_format_is_named(lm: LM, folder: Path) -> None:
    sheet = json.loads((folder / SHEET).read_text())
    (folder / SHEET).write_text(json.dumps({**sheet, "format": "segue-drafter/9"}))
    with pytest.raises(ValueError, match="has format 'segue-drafter/9', and this version reads 'segue-drafter/1'"):
        trained(lm, BlockwiseHeads, folder)


def test_damaged_weights_are_named(lm: LM, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        trained(lm, BlockwiseHeads, folder)


def test_a_folder_without_a_drafter_is_named(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no trained drafter"):
        trained(lm, BlockwiseHeads, tmp_path)
    with pytest.raises(ValueError, match="has no trained drafter for blockwise_parallel: name its folder"):
        trained(lm, BlockwiseHeads, None)


@pytest.mark.parametrize("cls", KINDS.values(), ids=KINDS)
def test_a_shape_without_sense_is_refused(lm: LM, cls: type[BlockwiseHeads]) -> None:
    with pytest.raises(ValueError, match="has no number 'size'"):
        cls.fresh(lm, size=3)
    name = fields(cls.shape_type)[2].name
    with pytest.raises(ValueError, match=f"{name}=0 is not allowed"):
        cls.fresh(lm, **{name: 0})


def test_an_identity_is_of_the_weights_and_not_of_their_precision() -> None:
    plain = segue.model("mini-draft", dtype="float32").lm
    assert plain.identity
    assert segue.model("mini-draft", dtype="bfloat16").lm.identity == plain.identity
    assert segue.model("mini-draft", quantize="int8").lm.identity == plain.identity
    assert segue.model().lm.identity != plain.identity


def test_one_changed_matrix_is_another_identity() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    before = identity(network)
    assert identity(network) == before
    with torch.no_grad():
        network[1].weight[0, 0] += 1.0
    assert identity(network) != before
