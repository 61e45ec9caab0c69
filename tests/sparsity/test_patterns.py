"""Patterns, distributions and levels per weight: counts without masks, balance, permutations, files, extensions."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from safetensors.numpy import save_file

from spdf_dist.accounting.parameters import nonzeros, real_sparsity
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.sparsity.assignment import remarks, sparse_weights
from spdf_dist.sparsity.masks import RandomMasks, logical_weights, make_mask, permutations
from spdf_dist.sparsity.patterns import parse_pattern

MODEL = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=4)


def test_counts_need_no_torch():
    code = (
        "import sys; from spdf_dist.accounting.parameters import nonzeros; "
        "from spdf_dist.config.schema import ModelConfig, SparsityConfig; "
        "nonzeros(ModelConfig(), SparsityConfig(level=.75, pattern='balanced:16')); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("pattern", "level"),
    [("unstructured", 0.3), ("block:4", 0.3), ("balanced:8", 0.75), ("2:4", 0.5), ("1:3", 0.666667)],
)
@pytest.mark.parametrize("permute", [False, True])
def test_every_pattern_keeps_what_it_counts(pattern, level, permute):
    model = ModelConfig(num_layers=2, hidden_size=96, num_attention_heads=4)
    sparsity = SparsityConfig(level=level, pattern=pattern, permute=permute)
    masks = RandomMasks(model, sparsity)
    counts = nonzeros(model, sparsity)
    for name, count in counts.items():
        assert count == int(masks[name].sum())


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256), (96, 192)])
def test_balanced_blocks_keep_equal_numbers_in_rows_and_columns(shape):
    sparsity = SparsityConfig(level=0.75, pattern="balanced:16" if shape[0] != 96 else "balanced:8")
    size = 16 if shape[0] != 96 else 8
    mask = make_mask("layers.0.W_Q", shape, sparsity)
    tiles = mask.reshape(shape[0] // size, size, shape[1] // size, size).sum((1, 3))
    assert set(np.unique(tiles)) == {0, size * size}
    grid = tiles > 0
    assert len(set(grid.sum(0))) == 1 and len(set(grid.sum(1))) == 1
    assert grid.mean() == 0.25
    assert np.array_equal(mask, make_mask("layers.0.W_Q", shape, sparsity))


def test_balanced_masks_are_as_independent_as_random_ones():
    masks = [
        make_mask(name, (256, 256), SparsityConfig(level=0.75, pattern="balanced:8", seed=seed))
        for name in ("layers.0.W_Q", "layers.1.W_Q")
        for seed in range(4)
    ]
    overlaps = [(a & b).sum() / a.sum() for i, a in enumerate(masks) for b in masks[i + 1 :]]
    assert np.mean(overlaps) == pytest.approx(0.25, abs=0.02) and max(overlaps) < 0.35
    # No block is preferred: the mean over many masks is uniform.
    mean = np.mean(
        [make_mask(f"w{i}", (64, 64), SparsityConfig(level=0.75, pattern="balanced:8")) for i in range(200)], 0
    )
    assert mean.min() > 0.12 and mean.max() < 0.38


@pytest.mark.parametrize(
    ("shape", "pattern", "level", "message"),
    [
        ((128, 128), "balanced:16", 0.7, "the nearest levels are 0.625 and 0.75"),
        ((64, 64), "balanced:64", 0.5, "no level can be balanced"),
        ((60, 64), "balanced:16", 0.5, "does not divide into blocks of 16"),
    ],
)
def test_what_cannot_be_balanced_is_refused_with_the_nearest_levels(shape, pattern, level, message):
    with pytest.raises(UserError, match=message):
        make_mask("layers.0.W_Q", shape, SparsityConfig(level=level, pattern=pattern))


def test_a_permuted_mask_is_its_block_mask_with_rows_and_columns_moved():
    plain = SparsityConfig(level=0.75, pattern="balanced:16")
    moved = SparsityConfig(level=0.75, pattern="balanced:16", permute=True)
    for name, shape in (("layers.0.W_Q", (64, 64)), ("layers.0.W_O", (64, 256))):
        outputs, inputs = permutations(moved.seed, name, shape)
        a, b = make_mask(name, shape, plain), make_mask(name, shape, moved)
        assert not np.array_equal(a, b)
        assert np.array_equal(a[outputs][:, inputs], b)
    q, k = permutations(1, "layers.0.W_Q", (64, 64)), permutations(1, "layers.0.W_K", (64, 64))
    assert np.array_equal(q[1], k[1]) and not np.array_equal(q[0], k[0])
    up, down = permutations(1, "layers.0.W_I", (256, 64)), permutations(1, "layers.0.W_O", (64, 256))
    assert np.array_equal(up[0], down[1])
    assert not np.array_equal(q[1], permutations(1, "layers.1.W_Q", (64, 64))[1])


def test_levels_and_patterns_by_glob_first_match_wins():
    sparsity = SparsityConfig(
        level=0.5, levels={"layers.0.W_Q": 0.0, "layers.0.*": 0.75, "W_O": 0.875}, patterns={"*.W_I": "block:16"}
    )
    weights = sparse_weights(logical_weights(MODEL), sparsity)
    assert "layers.0.W_Q" not in weights
    assert float(weights["layers.0.W_O"].level) == 0.75 and float(weights["layers.1.W_O"].level) == 0.875
    assert weights["layers.1.W_I"].pattern == parse_pattern("block:16") and float(weights["layers.1.W_K"].level) == 0.5


@pytest.mark.parametrize(
    ("levels", "message"),
    [({"layers.7.*": 0.5}, "'layers.7.\\*' matches no weight"), ({"*": 0.5, "W_Q": 0.7}, "'W_Q' has no effect")],
)
def test_a_glob_without_effect_is_an_error(levels, message):
    with pytest.raises(UserError, match=message):
        sparse_weights(logical_weights(MODEL), SparsityConfig(level=0.5, levels=levels))


def test_erdos_renyi_keeps_the_mean_and_favours_small_weights():
    weights = sparse_weights(logical_weights(MODEL), SparsityConfig(level=0.75, distribution="er"))
    attention, ffn = weights["layers.0.W_Q"], weights["layers.0.W_I"]
    assert 1 - attention.level == Fraction(1, 3) and (1 - ffn.level) / (1 - attention.level) == Fraction(5, 8)
    assert real_sparsity(MODEL, SparsityConfig(level=0.75, distribution="er")) == pytest.approx(0.75, abs=1e-3)
    # A weight whose density would exceed 1 is dense. The others share the remaining non-zeros.
    mild = sparse_weights(logical_weights(MODEL), SparsityConfig(level=0.2, distribution="er"))
    assert not any(name.endswith(("W_Q", "W_K", "W_V", "W_D")) for name in mild)
    kept = sum(nonzeros(MODEL, SparsityConfig(level=0.2, distribution="er")).values())
    assert kept / (24 * 64 * 64) == pytest.approx(0.8, abs=1e-3)


def test_masks_from_a_file_as_arrays_or_packed_bits(tmp_path):
    masks = dict(RandomMasks(MODEL, SparsityConfig(level=0.75)))
    save_file({name: mask.astype(np.uint8) for name, mask in masks.items()}, tmp_path / "a.safetensors")
    save_file({name: np.packbits(mask, axis=None) for name, mask in masks.items()}, tmp_path / "b.safetensors")
    for file in ("a", "b"):
        read = RandomMasks(MODEL, SparsityConfig(level=0.75, pattern=str(tmp_path / f"{file}.safetensors")))
        assert all(np.array_equal(read[name], mask) for name, mask in masks.items())
    with pytest.raises(UserError, match=r"prunes 0\.75 of layers\.0\.W_Q, not 0\.5"):
        RandomMasks(MODEL, SparsityConfig(level=0.5, pattern=str(tmp_path / "a.safetensors")))["layers.0.W_Q"]
    with pytest.raises(UserError, match="cannot be read"):
        RandomMasks(MODEL, SparsityConfig(level=0.5, pattern="missing.safetensors"))["layers.0.W_Q"]


def test_a_level_that_the_blocks_cannot_have_is_remarked_on():
    model = ModelConfig(num_layers=1, hidden_size=128, num_attention_heads=4)
    sparsity = SparsityConfig(level=0.9, pattern="block:128")
    (remark,) = remarks(logical_weights(model), sparsity)
    assert "0.9 is set, but the masks prune 0.5 " in remark and "W_Q" in remark
    assert real_sparsity(model, sparsity) == 0.5
    assert remarks(logical_weights(model), SparsityConfig(level=0.75)) == []


PLUGIN = '''
"""A pattern from outside the package: the kept entries of each row are consecutive."""
import numpy as np


class Band:
    syntax = "band"
    block = 1

    @classmethod
    def parse(cls, text):
        return cls() if text == "band" else None

    def check(self, name, shape, level):
        pass

    def kept_count(self, name, shape, level):
        return shape[0] * (shape[1] - int(level * shape[1]))

    def make_mask(self, name, shape, level, scores):
        width = shape[1] - int(level * shape[1])
        return (np.arange(shape[1]) - np.arange(shape[0])[:, None]) % shape[1] < width
'''


def test_one_file_outside_the_package_adds_a_pattern(tmp_path):
    (tmp_path / "band_pattern.py").write_text(PLUGIN)
    info = tmp_path / "band-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: band\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spdf.patterns]\nband = band_pattern:Band\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from spdf_dist.cli.main import main; "
        "sys.exit(main(['flops', 'cpu_1m', 'sparsity.level=0.75', 'sparsity.pattern=band']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "at 0.75 band" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert done.returncode == 2 and "'band' is not known" in done.stderr
