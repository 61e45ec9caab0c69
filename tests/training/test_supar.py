"""SuPar in the whole trainer: layouts, executions, export, fine-tuning, other programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from spdf_command import read_metrics, run_spdf

from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.model.architecture import architecture_of

pytestmark = pytest.mark.slow  # each run of the trainer takes seconds

SUPAR = (
    "training.parameterization=supar",
    "training.base_hidden_size=16",
    "training.init_std=0.05",
    "training.embedding_multiplier=4",
    "training.output_multiplier=3",
    "training.attention_multiplier=2",
    "training.base_num_layers=1",
    "training.weight_decay_scaling=product",
    "model.dropout=0",
)
SINGLE_PROCESS = ("parallel.tensor=1", "parallel.data=1", "parallel.zero_stage=0", "sparsity.execution=masked")


def pretrain(config: Path, run: Path, *overrides: str) -> list[float]:
    done = run_spdf("pretrain", config, f"run_dir={run}", *SUPAR, *overrides)
    assert done.returncode == 0, done.stderr
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


@pytest.fixture(scope="module")
def alone(tiny_config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("supar") / "run"
    pretrain(tiny_config, run, *SINGLE_PROCESS)
    return run


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tensor=2", "sparsity.execution=compressed", "parallel.zero_stage=1"),
        ("parallel.data=2", "sparsity.execution=compressed", "parallel.zero_stage=2"),
        ("parallel.tensor=2", "parallel.data=2", "sparsity.execution=masked", "parallel.zero_stage=1"),
    ],
)
def test_every_layout_and_execution_has_the_same_losses(alone, tiny_config, tmp_path, layout):
    losses = [line["loss"] for line in read_metrics(alone) if "loss" in line]
    assert pretrain(tiny_config, tmp_path / "run", *layout) == pytest.approx(losses, rel=1e-4)


def test_each_density_has_its_own_rate(alone, tiny_config, tmp_path):
    """Densities are per weight, not a mean: a model with two levels trains differently from models with one."""
    mixed = pretrain(tiny_config, tmp_path / "run", *SINGLE_PROCESS, 'sparsity.levels={"layers.0.*": 0.5}')
    assert mixed != [line["loss"] for line in read_metrics(alone) if "loss" in line]
    done = run_spdf(
        "pretrain",
        tiny_config,
        f"run_dir={tmp_path}/no",
        *SUPAR,
        *SINGLE_PROCESS,
        'sparsity.levels={"layers.0.W_Q": 0.5}',
    )
    assert done.returncode == 2 and "need one density" in done.stderr


def hugging_face_loss(config_path: Path, run: Path, out: Path) -> float:
    """The validation loss of the exported run, computed by transformers."""
    transformers = pytest.importorskip("transformers")
    from spdf_dist.config.load import load_config
    from spdf_dist.config.schema import PretrainConfig
    from spdf_dist.data.loader import open_mixture

    assert run_spdf("export-hf", run, out).returncode == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    config = load_config(PretrainConfig, str(config_path))
    data = open_mixture(config.data.validation, 32, config.seed, 300)
    ids = torch.from_numpy(np.asarray(data.read(np.arange(min(16, data.num_sequences))), dtype=np.int64))
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def validation_loss(run: Path) -> float:
    return [line["val_loss"] for line in read_metrics(run) if "val_loss" in line][-1]


def test_hugging_face_computes_the_same_from_the_folded_export(alone, tiny_config, tmp_path):
    assert hugging_face_loss(tiny_config, alone, tmp_path / "hf") == pytest.approx(validation_loss(alone), abs=1e-5)
    checkpoint = Checkpoint(alone)
    folding = checkpoint.parameterization.folding(architecture_of(checkpoint.model))
    assert {"layers.0.W_Q", "layers.1.b_O", "embedding.word", "ln_f.bias"} <= set(folding)


@pytest.mark.distributed
@pytest.mark.parametrize("tied", ["true", "false"])
def test_llama_has_it_too(tiny_config, tmp_path, tied):
    llama = ("model.family=llama", "model.num_key_value_heads=2", f"model.tie_embeddings={tied}")
    targets = "sparsity.targets=[W_Q,W_K,W_V,W_D,W_G,W_I,W_O]"
    one = pretrain(tiny_config, tmp_path / "one", *llama, targets, *SINGLE_PROCESS)
    two = pretrain(tiny_config, tmp_path / "two", *llama, targets, "parallel.tensor=2", "sparsity.execution=compressed")
    assert two == pytest.approx(one, rel=1e-4)
    loss = hugging_face_loss(tiny_config, tmp_path / "two", tmp_path / "hf")
    assert loss == pytest.approx(validation_loss(tmp_path / "two"), abs=1e-4)


def test_a_checkpoint_records_it_and_other_multipliers_are_refused(alone, tiny_config, tmp_path):
    summary = json.loads(run_spdf("inspect", alone, "--json").stdout)
    assert summary["parameterization"]["base_hidden_size"] == 16
    assert run_spdf("densify", alone, tmp_path / "dense").returncode == 0
    assert Checkpoint(tmp_path / "dense").parameterization == Checkpoint(alone).parameterization
    start = f"training.init_from={tmp_path}/dense"
    done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path}/run", *SINGLE_PROCESS, start)
    assert done.returncode == 2 and "was trained with supar, not standard" in done.stderr


def test_fine_tuning_keeps_the_multipliers(alone, tmp_path):
    pairs = [f'"name[Inn{n}], eatType[pub]","Inn{n} is a pub."' for n in range(24)]
    (tmp_path / "train.csv").write_text("mr,ref\n" + "\n".join(pairs) + "\n")
    ran = (
        f"finetune.checkpoint={alone}",
        f"finetune.train={tmp_path}/train.csv",
        f"finetune.validation={tmp_path}/train.csv",
    )
    done = run_spdf(
        "finetune",
        "finetune/e2e",
        *ran,
        f"run_dir={tmp_path}/ft",
        "device=cpu",
        "finetune.warmup_steps=1",
        "finetune.epochs=1",
    )
    assert done.returncode == 0, done.stderr
    tuned = Checkpoint(tmp_path / "ft")
    assert tuned.parameterization == Checkpoint(alone).parameterization
    # The first loss is that of the pre-trained model with its multipliers.
    assert read_metrics(tmp_path / "ft")[0]["loss"] < 5.7
