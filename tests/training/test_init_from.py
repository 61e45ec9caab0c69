"""Runs that start from another checkpoint: inherited state, continued state, and errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from spdf_command import read_metrics, run_spdf

from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.init_from import Origin

pytestmark = pytest.mark.slow  # each run of the trainer takes seconds

SINGLE_PROCESS = ("parallel.tensor=1", "parallel.data=1", "sparsity.execution=masked", "validation.interval=100")
STEP = 16 * 32  # tokens


def losses(run: Path) -> dict[int, tuple]:
    return {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in read_metrics(run) if "loss" in line}


def pretrain(config: Path, run: Path, *overrides: str) -> None:
    done = run_spdf("pretrain", config, f"run_dir={run}", *SINGLE_PROCESS, *overrides)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trunk(tiny_config, tmp_path_factory) -> Path:
    """Eight steps at a constant learning rate, 75% sparse, with a checkpoint at step 5."""
    run = tmp_path_factory.mktemp("trunk") / "run"
    pretrain(tiny_config, run, "training.schedule=constant", f"training.train_tokens={8 * STEP}", "checkpoint.keep=5")
    return run


@pytest.mark.parametrize("execution", ["masked", "compressed"])
def test_a_cooldown_branch_goes_on_bit_for_bit(trunk, tiny_config, tmp_path, execution):
    wsd = ("training.schedule=wsd", "training.cooldown_fraction=0.5", f"training.train_tokens={10 * STEP}")
    how = (*wsd, f"sparsity.execution={execution}")
    pretrain(tiny_config, tmp_path / "whole", *how)
    if execution == "compressed":  # the same execution before the branch
        pretrain(
            tiny_config, tmp_path / "trunk", "training.schedule=constant", f"training.train_tokens={8 * STEP}", how[-1]
        )
        trunk = tmp_path / "trunk"
    start = f"training.init_from={trunk}/checkpoints/step_5"
    pretrain(tiny_config, tmp_path / "branch", *how, start, "training.reset=[]")
    whole, branch = losses(tmp_path / "whole"), losses(tmp_path / "branch")
    assert sorted(branch) == list(range(6, 11))
    assert branch == {step: whole[step] for step in branch}


def test_a_branch_can_be_stopped_and_goes_on_without_its_origin(trunk, tiny_config, tmp_path):
    shutil.copytree(trunk / "checkpoints" / "step_5", tmp_path / "origin" / "step_5")
    how = (f"training.init_from={tmp_path}/origin/step_5", "sparsity.pattern=init_from", "training.reset=[schedule]")
    pretrain(tiny_config, tmp_path / "run", *how)
    before = losses(tmp_path / "run")
    assert Checkpoint(tmp_path / "run").manifest.state["data_offset"] == 5 * 16
    for step in (10, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{step}", ignore_errors=True)
    shutil.rmtree(tmp_path / "origin")
    pretrain(tiny_config, tmp_path / "run", *how)
    assert losses(tmp_path / "run") == before


@pytest.mark.parametrize(("level", "pattern"), [(0.0, "unstructured"), (0.5, "unstructured"), (0.75, "block:16")])
def test_values_are_taken_where_the_mask_keeps_them(trunk, tiny_config, tmp_path, level, pattern):
    """Sparse to dense, to another level and to other masks; at step 0 before any update."""
    how = (
        f"sparsity.level={level}",
        f"sparsity.pattern={pattern}",
        "training.train_tokens=0",
        "training.warmup_tokens=0",
    )
    pretrain(tiny_config, tmp_path / "run", *how, f"training.init_from={trunk}")
    old, new = Checkpoint(trunk), Checkpoint(tmp_path / "run")
    assert (new.manifest.source or {})["lineage"][-1]["kind"] == "pretrain"
    assert new.step == 0 and len(new.masks) == (0 if level == 0 else 12)
    for name in old.manifest.tensors:
        expected = old.read_array(name)
        if name in new.masks:
            expected = np.where(new.masks[name], expected, 0)
        assert np.array_equal(new.read_array(name), expected)


@pytest.mark.parametrize(
    ("how", "share"),
    [((), 0.0), (("sparsity.seed=9",), 0.75), (("sparsity.level=0",), 0.0)],
    ids=["same", "other", "no"],
)
def test_a_run_says_how_many_kept_weights_its_masks_prune(trunk, tiny_config, how, share):
    config = load_config(PretrainConfig, str(tiny_config), [*how, f"training.init_from={trunk}"])
    origin = Origin(config)
    masks = origin.masks()
    assert origin.share_pruned(masks) == pytest.approx(share, abs=0.03)
    assert ("the masks prune" in origin.note(masks)) == (share > 0)


def test_dense_to_sparse_keeps_the_moments_of_what_stays(trunk, tiny_config, tmp_path):
    pretrain(tiny_config, tmp_path / "dense", "sparsity.level=0", f"training.train_tokens={5 * STEP}")
    how = (f"training.init_from={tmp_path}/dense", "training.reset=[data]", f"training.train_tokens={6 * STEP}")
    pretrain(tiny_config, tmp_path / "sparse", *how)
    assert sorted(losses(tmp_path / "sparse")) == [6]
    new = Checkpoint(tmp_path / "sparse")
    assert new.manifest.optimizer == {"updates": 6}
    assert new.read_array("layers.0.W_Q", "exp_avg").any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden_size=64"], "another architecture: model.hidden_size is 32 in the checkpoint and 64"),
        (["model.vocab_size=304"], "vocab_size is 300 in the checkpoint and 304"),
        (["training.reset=[optimiser]"], "did you mean 'optimizer'"),
        (["training.reset=[]", "training.train_tokens=2048"], "has consumed 4096 tokens already"),
        (
            ["training.reset=[]", "training.global_batch_size=6", "training.micro_batch_size=3"],
            "which are not whole steps",
        ),
        (["sparsity.pattern=init_from", "sparsity.level=0.5"], "prune 0.75, not 0.5"),
        (["sparsity.pattern=init_from", "sparsity.targets=[W_Q]"], "are not those of sparsity.targets"),
    ],
)
def test_what_does_not_fit_is_one_line(trunk, tiny_config, tmp_path, overrides, message):
    done = run_spdf(
        "pretrain", tiny_config, f"run_dir={tmp_path}/run", *SINGLE_PROCESS, f"training.init_from={trunk}", *overrides
    )
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_masks_that_are_not_there_are_asked_for_in_one_line(trunk, tiny_config, tmp_path):
    assert run_spdf("densify", trunk, tmp_path / "dense").returncode == 0
    start = f"training.init_from={tmp_path}/dense"
    done = run_spdf(
        "pretrain", tiny_config, f"run_dir={tmp_path}/run", *SINGLE_PROCESS, start, "sparsity.pattern=init_from"
    )
    assert done.returncode == 2 and "which was made dense" in done.stderr
    done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path}/run", *SINGLE_PROCESS, start, "training.reset=[data]")
    assert done.returncode == 2 and "a densified checkpoint, whose run cannot continue" in done.stderr
    done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path}/run", *SINGLE_PROCESS, "sparsity.pattern=init_from")
    assert done.returncode == 2 and "training.init_from, which is not set" in done.stderr
