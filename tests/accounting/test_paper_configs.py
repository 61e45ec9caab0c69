"""The shipped configs are the paper's: Table 1, appendices A.1 to A.3."""

from __future__ import annotations

import pytest

from spdf_dist.accounting.flops import linears_share
from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.config.load import load_config, run_differences, to_tree
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig

TABLE_1 = {
    "gpt2_small": (12, 768, 12, 256, 6e-4, 2_500_000_000),
    "gpt3_xl": (24, 2048, 16, 512, 2e-4, 26_000_000_000),
}


@pytest.mark.parametrize("name", TABLE_1)
@pytest.mark.parametrize(("suffix", "level"), [("", 0.0), ("_s0", 0.0), ("_s50", 0.5), ("_s75", 0.75)])
def test_pretraining_is_table_1_and_a1(name: str, suffix: str, level: float) -> None:
    config = load_config(PretrainConfig, name + suffix)
    model, training = config.model, config.training
    shape = (model.num_layers, model.hidden_size, model.num_attention_heads)
    assert (*shape, training.global_batch_size, training.lr, training.train_tokens) == TABLE_1[name]
    assert (model.ffn, model.seq_length, model.vocab_size) == (4 * model.hidden_size, 2048, 50257)
    assert (training.warmup_tokens, training.min_lr_ratio) == (375_000_000, 0.1)
    assert (training.beta1, training.beta2, training.eps) == (0.9, 0.999, 1e-8)
    assert (training.clip_grad, training.weight_decay) == (1.0, 0.1)
    assert (config.sparsity.level, config.sparsity.pattern) == (level, "unstructured")
    assert len(config.sparsity.targets) == 6


@pytest.mark.parametrize("name", TABLE_1)
def test_variants_differ_in_sparsity_and_folder_alone(name: str) -> None:
    dense, sparse = (to_tree(load_config(PretrainConfig, f"{name}_{s}")) for s in ("s0", "s75"))
    assert [line.split(":")[0] for line in run_differences(dense, sparse)] == ["sparsity.level"]


@pytest.mark.parametrize("model", TABLE_1)
@pytest.mark.parametrize("task", ["e2e", "webnlg", "dart", "curation"])
def test_finetuning_is_a2_and_a3(model: str, task: str) -> None:
    config = load_config(FinetuneConfig, f"finetune/{model}_{task}")
    assert (config.finetune.task, config.finetune.epochs, config.finetune.max_length) == (task, 5, 512)
    assert config.finetune.patience > 0
    assert config.finetune.checkpoint == f"runs/{model}_s75"
    assert config.training.global_batch_size in ((32,) if task == "curation" else (8, 16, 32, 64))
    assert not config.finetune.keep_mask
    if task != "curation":
        assert (config.finetune.warmup_steps, config.finetune.label_smoothing) == (500, 0.1)
        assert (config.training.weight_decay, config.training.clip_grad) == (0.01, 0.0)


@pytest.mark.parametrize(("name", "millions"), [("cpu_1m", 1), ("cpu_4m", 4), ("cpu_10m", 10)])
def test_small_models_leave_something_to_save(name: str, millions: int) -> None:
    config = load_config(PretrainConfig, name)
    assert total_parameters(config.model) == pytest.approx(millions * 1e6, rel=0.1)
    assert linears_share(config.model) > 0.55
    assert 0 < config.training.warmup_tokens < 0.1 * config.training.train_tokens
