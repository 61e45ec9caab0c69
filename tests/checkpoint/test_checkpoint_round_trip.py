"""Checkpoints written at one topology and read at another are equal in every bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_job import (
    MODEL,
    SPARSE,
    local_shards,
    local_tensor,
    make_tensors,
    manifest_of,
    masks_of,
    responsible,
    save,
)
from safetensors import safe_open

from spdf_dist.checkpoint.manifest import KINDS, global_shapes
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.write import single_writer
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import SparsityConfig
from spdf_dist.sparsity.masks import mask_digest

BLOCKS = SparsityConfig(level=0.5, pattern="block:4", seed=3)
SOME = SparsityConfig(level=0.6, seed=3, targets=["W_I", "W_O"])


@pytest.mark.parametrize("sparsity", [None, SPARSE, BLOCKS, SOME], ids=["dense", "sparse", "blocks", "some"])
@pytest.mark.parametrize("values", [True, False], ids=["values", "slices"])
@pytest.mark.parametrize("written", [1, 2, 4])
def test_any_topology_reads_what_any_other_wrote(
    tmp_path: Path, sparsity: SparsityConfig | None, values: bool, written: int
) -> None:
    masks = masks_of(sparsity)
    tensors = make_tensors(masks)
    (folder, *others) = save(tmp_path, 5, written, sparsity, tensors, values)
    assert folder == tmp_path / "step_5" and all(other == folder for other in others)
    checkpoint = Checkpoint(folder)
    checkpoint.verify()
    assert checkpoint.step == 5 and checkpoint.model == MODEL and checkpoint.sparsity == sparsity
    assert checkpoint.manifest.rank_state == [{"rng": f"{rank:02x}"} for rank in range(written)]
    for kind in KINDS:
        for name, tensor in tensors[kind].items():
            assert torch.equal(checkpoint.read(name, kind), tensor), name
        for ranks in (1, 2, 4):
            for rank in range(ranks):
                for shard in local_shards(rank, ranks, masks):
                    local = local_tensor(shard, tensors[kind][shard.name])
                    found = checkpoint.read_shard(shard, kind)
                    assert torch.equal(found, local[shard.mask] if shard.mask is not None else local), shard
                    assert torch.equal(checkpoint.read_shard(replace(shard, mask_source=None), kind), local), shard


def test_files_hold_values_alone_and_no_padding(tmp_path: Path) -> None:
    masks = masks_of(SPARSE)
    (folder, _) = save(tmp_path, 5, 2)
    stored: dict[str, int] = {}
    for path in sorted(folder.glob("model-*.safetensors")) + sorted(folder.glob("optim-*.safetensors")):
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - no dictionary
                stored[key] = stored.get(key, 0) + file.get_tensor(key).size
    for name, shape in global_shapes(MODEL).items():
        expected = int(masks[name].sum()) if name in masks else int(np.prod(shape))
        assert [stored[name], stored[f"exp_avg/{name}"], stored[f"exp_avg_sq/{name}"]] == [expected] * 3, name
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "masks.safetensors",
        "config.yaml",
        *(f"{stem}-0000{rank}.safetensors" for stem in ("model", "optim") for rank in (0, 1)),
    }


def test_values_lie_in_row_major_order_of_the_slice(tmp_path: Path) -> None:
    masks = masks_of(SPARSE)
    tensors = make_tensors(masks)
    (folder, _) = save(tmp_path, 5, 2, tensors=tensors)
    name = "layers.1.W_O"  # sharded along its inputs
    half = MODEL.ffn // 2
    with safe_open(folder / "model-00001.safetensors", framework="np") as file:
        values = file.get_tensor(name)
    dense = tensors["model"][name].numpy()
    places = [(row, column) for row in range(MODEL.hidden_size) for column in range(half, 2 * half)]
    expected = [dense[place] for place in places if masks[name][place]]
    assert values.tolist() == expected


def test_masks_come_back_with_their_digests(tmp_path: Path) -> None:
    masks = masks_of(SPARSE)
    save(tmp_path, 5)
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.masks) == set(masks)
    for name, mask in masks.items():
        assert np.array_equal(checkpoint.masks[name], mask)
        assert checkpoint.manifest.masks[name].sha256 == mask_digest(mask)
        assert checkpoint.manifest.masks[name].kept == mask.sum()


def test_a_digest_that_never_changes(tmp_path: Path) -> None:
    save(tmp_path, 5)
    found = Checkpoint(tmp_path).manifest.masks["layers.1.W_I"]
    assert (found.shape, found.kept) == ((20, 8), 40)
    assert found.sha256 == "d98336a14e7acbd114c5cbb22de2e93cd741bd8403a2fe9bf7dba6e608496ccc"


def test_same_bytes_at_every_save(tmp_path: Path) -> None:
    (first,) = save(tmp_path / "a", 5)
    (second,) = save(tmp_path / "b", 5)
    digests = [json.loads((folder / "manifest.json").read_text())["files"] for folder in (first, second)]
    assert digests[0] == digests[1]


def test_another_mask_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    checkpoint = Checkpoint(tmp_path)
    for shard in local_shards(0, 2, masks_of(replace(SPARSE, seed=8))):
        if shard.mask is not None:
            with pytest.raises(UserError, match=r"mask of layers\.0\.W_Q is not this run's"):
                checkpoint.read_shard(shard)
            break


def test_a_mask_for_a_dense_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5, sparsity=None)
    checkpoint = Checkpoint(tmp_path)
    shard = next(p for p in local_shards(0, 1, masks_of(SPARSE)) if p.mask is not None)
    with pytest.raises(UserError, match="is dense there and sparse in this run"):
        checkpoint.read_shard(shard)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.check_model(replace(MODEL, dropout=0.3))
    with pytest.raises(UserError, match=r"model\.num_layers is 2 in the checkpoint and 3 in the config") as raised:
        checkpoint.check_model(replace(MODEL, num_layers=3, ffn_hidden_size=None))
    assert "model.ffn_hidden_size is 20 in the checkpoint and 32 in the config" in str(raised.value)
    assert "vocab" not in str(raised.value)


def test_weights_alone(tmp_path: Path) -> None:
    tensors = make_tensors(masks_of(SPARSE))
    save(tmp_path, 0, 2, tensors={"model": tensors["model"]})
    dense = Checkpoint(tmp_path)
    assert dense.step == 0 and dense.tokenizer_dir is None
    weights = dense.weights()
    assert all(torch.equal(weights[name], tensor) for name, tensor in tensors["model"].items())
    assert not Checkpoint(tmp_path).has("exp_avg")
    with pytest.raises(UserError, match=r"holds no exp_avg of ln_f\.bias"):
        Checkpoint(tmp_path).read("ln_f.bias", "exp_avg")


def test_pruned_entries_that_are_not_zero_are_counted_when_slices_are_given(tmp_path: Path) -> None:
    masks = masks_of(SPARSE)
    tensors = make_tensors(masks)
    name = "layers.0.W_V"
    pruned = torch.nonzero(~torch.from_numpy(masks[name]))
    tensors["model"][name][tuple(pruned[0])] = 1e-30
    tensors["exp_avg_sq"][name][tuple(pruned[-1])] = float("nan")
    save(tmp_path, 5, 2, tensors=tensors, values=False)
    stored = Checkpoint(tmp_path).manifest.tensors
    assert stored[name].pruned_nonzero == {"model": 1, "exp_avg": 0, "exp_avg_sq": 1}
    assert all(not any(t.pruned_nonzero.values()) for n, t in stored.items() if n != name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("values", [True, False], ids=["values", "slices"])
def test_tensors_and_masks_on_a_gpu(tmp_path: Path, values: bool) -> None:
    masks = masks_of(SPARSE)
    tensors = make_tensors(masks)
    shards = (
        (kind, replace(shard, mask_source=None if shard.mask is None else shard.mask.cuda()), tensor.cuda())
        for kind, shard, tensor in responsible(0, 1, masks, tensors, values)
    )
    folder = single_writer(tmp_path / "step_5", 5).write(
        shards, masks=masks, config_yaml="", tokenizer=None, manifest=manifest_of(SPARSE)
    )
    checkpoint = Checkpoint(folder)
    for shard in local_shards(0, 2, masks):
        local = local_tensor(shard, tensors["model"][shard.name])
        on_gpu = replace(shard, mask_source=None if shard.mask is None else shard.mask.cuda())
        assert torch.equal(checkpoint.read_shard(on_gpu), local if shard.mask is None else local[shard.mask])
