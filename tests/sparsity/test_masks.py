"""Masks depend only on their key: exact counts, a fixed digest, and patterns."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from spdf_dist.base.random_streams import derive_seed
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.model.initialize import initial_tensor
from spdf_dist.sparsity.masks import RandomMasks, keep_lowest, make_mask, mask_digest, pruned_count

GOLDEN = "e1fe1c1d6ca7f112f24dbea1b4f83eae7b65f77a49515cd16a9fa50fdd88e539"
"""Digest of layers.0.W_Q, 64x64, 75%, seed 1234. Never edit it: another generator would break every resumed run."""


def test_the_golden_digest():
    mask = make_mask("layers.0.W_Q", (64, 64), SparsityConfig(level=0.75))
    assert mask_digest(mask) == GOLDEN
    bits = "".join("1" if kept else "0" for kept in mask.ravel())
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
    shape = (64).to_bytes(8, "big") + (64).to_bytes(8, "big")
    assert hashlib.sha256(shape + packed).hexdigest() == GOLDEN


@pytest.mark.parametrize(("level", "numel", "pruned"), [(0.9, 1000, 900), (0.1, 10, 1), (0.75, 7, 5), (0.29, 100, 29)])
def test_counts_are_exact_on_the_decimal(level, numel, pruned):
    assert pruned_count(numel, level) == pruned
    mask = make_mask("w", (1, numel), SparsityConfig(level=level))
    assert int(mask.sum()) == numel - pruned


def test_ties_go_to_the_lower_index():
    assert keep_lowest(np.array([5, 3, 3, 3, 9], dtype=np.uint64), 2).tolist() == [False, True, True, False, False]


def test_a_mask_depends_on_seed_name_and_nothing_else():
    base = SparsityConfig(level=0.5)
    same = make_mask("layers.1.W_K", (32, 48), SparsityConfig(level=0.5, execution="masked", init_scale="fan_in"))
    assert np.array_equal(make_mask("layers.1.W_K", (32, 48), base), same)
    for other in (("layers.1.W_V", base), ("layers.1.W_K", SparsityConfig(level=0.5, seed=1))):
        overlap = (make_mask(other[0], (32, 48), other[1]) & same).sum() / same.sum()
        assert 0.4 < overlap < 0.6


def test_masks_do_not_select_weights_by_value():
    model = ModelConfig(num_layers=1, hidden_size=256, num_attention_heads=4)
    weight = initial_tensor(architecture_of(model).tensors["layers.0.W_Q"], seed=1234).numpy()
    mask = make_mask("layers.0.W_Q", (256, 256), SparsityConfig(level=0.75, seed=1234))
    kept, pruned = weight[mask], weight[~mask]
    assert abs(kept.mean() - pruned.mean()) < 4 * 0.02 / np.sqrt(kept.size)
    assert kept.std() == pytest.approx(pruned.std(), rel=0.03)
    assert len({derive_seed(domain, 1, "x") for domain in ("mask", "init", "order", "dropout")}) == 4


def test_blocks_and_n_of_m():
    blocks = make_mask("w", (64, 96), SparsityConfig(level=0.75, pattern="block:16"))
    tiles = blocks.reshape(4, 16, 6, 16).sum((1, 3))
    assert set(np.unique(tiles)) == {0, 256} and (tiles > 0).sum() == 6
    two_of_four = make_mask("w", (64, 96), SparsityConfig(level=0.5, pattern="2:4"))
    assert (two_of_four.reshape(-1, 4).sum(1) == 2).all()
    assert len(np.unique(two_of_four.reshape(-1, 4), axis=0)) == 6
    one_of_three = make_mask("w", (64, 96), SparsityConfig(level=0.666667, pattern="1:3"))
    assert (one_of_three.reshape(-1, 3).sum(1) == 1).all()
    with pytest.raises(UserError, match="divide"):
        make_mask("w", (60, 96), SparsityConfig(level=0.5, pattern="block:16"))


def test_only_the_targets_are_sparse():
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4)
    masks = RandomMasks(model, SparsityConfig(level=0.5, targets=["W_I", "W_O"]))
    assert list(masks) == ["layers.0.W_I", "layers.0.W_O", "layers.1.W_I", "layers.1.W_O"]
    assert masks["layers.1.W_I"].shape == (128, 32)
    assert len(RandomMasks(model, SparsityConfig(level=0.0))) == 0
