"""Configs: base files, overrides, number formats, and errors that name the key."""

from __future__ import annotations

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config, run_differences, shipped_configs, to_tree, to_yaml
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig


def write(tmp_path, text, name="c.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_numbers_base_files_and_overrides(tmp_path):
    write(tmp_path, "training: {lr: 6e-4, train_tokens: 2.5e9}\nmodel: {num_layers: 3}", "base.yaml")
    path = write(tmp_path, "base: base.yaml\ndata: {train: a, validation: [b, {path: c, weight: 2}]}")
    config = load_config(PretrainConfig, path, ["training.lr=1e-3", "parallel.data=4", "training.global_batch_size=32"])
    assert config.training.lr == 1e-3 and config.training.train_tokens == 2_500_000_000
    assert config.model.num_layers == 3 and config.model.ffn == 4 * config.model.hidden_size
    assert [e.path for e in config.data.train] == ["a"] and config.data.validation[1].weight == 2
    assert load_config(PretrainConfig, write(tmp_path, to_yaml(config), "again.yaml")) == config


@pytest.mark.parametrize("text", ["1.10", "007", "12:30", "1_000", "2024-01-02", "2024-13-45", "0x_", "1e3"])
def test_text_stays_as_it_was_written(tmp_path, text):
    path = write(tmp_path, "")
    assert load_config(PretrainConfig, path, [f"run_dir={text}"]).run_dir == text
    quoted = to_yaml(load_config(PretrainConfig, path, [f"run_dir={text}"]))
    assert load_config(PretrainConfig, write(tmp_path, quoted)).run_dir == text


def test_words_that_yaml_1_1_takes_for_numbers(tmp_path):
    path = write(
        tmp_path, "sparsity: {pattern: 2:4, level: 0.5}\nrun_dir: 2024-13-45\nseed: 1_000\ntraining: {lr: 2.5e-4}\n"
    )
    config = load_config(PretrainConfig, path)
    assert config.sparsity.pattern == "2:4" and config.run_dir == "2024-13-45"
    assert config.seed == 1000 and config.training.lr == 2.5e-4
    assert load_config(PretrainConfig, path, ["sparsity.pattern=1:2"]).sparsity.pattern == "1:2"
    settings = load_config(PretrainConfig, path, ["deepspeed={a: 1e-3, b: [10, 0.10], c: auto}"]).deepspeed
    assert settings == {"a": 1e-3, "b": [10, 0.1], "c": "auto"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainig: {}", ["trainig", "training"]),
        ("model: {num_layer: 1}", ["model.num_layer", "num_layers"]),
        ("model: {num_layers: two}", ["model.num_layers", "whole number"]),
        ("model: {num_layers: 1.5}", ["model.num_layers"]),
        ("training: {activation_checkpointing: 1}", ["true or false"]),
        ("sparsity: {execution: compress}", ["compressed"]),
        ("sparsity: {targets: [W_X]}", ["W_X"]),
        ("base: nowhere.yaml", ["nowhere"]),
        ("base: gpt2_small_s75\nsparsity:\n", ["'sparsity'", "leave it out"]),
        ("[1, 2]", ["keys and values"]),
        ("a: {", ["YAML"]),
        ("device: gpu", ["device"]),
    ],
)
def test_an_error_names_the_key_and_what_is_known(text, words, tmp_path):
    with pytest.raises(UserError) as error:
        load_config(PretrainConfig, write(tmp_path, text))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_that_forms_a_cycle(tmp_path):
    write(tmp_path, "base: b.yaml", "a.yaml")
    write(tmp_path, "base: a.yaml", "b.yaml")
    with pytest.raises(UserError, match="forms a cycle"):
        load_config(PretrainConfig, str(tmp_path / "a.yaml"))


def test_every_shipped_training_config_loads():
    names = [name for name in shipped_configs() if not name.startswith(("workflows/", "demo"))]
    assert {"gpt2_small_s75", "gpt3_xl_s50", "finetune/e2e"} <= set(names)
    for name in names:
        if name.startswith("finetune/"):
            load_config(FinetuneConfig, name, ["finetune.checkpoint=x"])
        else:
            load_config(PretrainConfig, name)


def test_the_paper_s_table_1():
    small, xl = load_config(PretrainConfig, "gpt2_small_s75"), load_config(PretrainConfig, "gpt3_xl_s75")
    for config, layers, width, heads, batch, lr, tokens in (
        (small, 12, 768, 12, 256, 6e-4, 2.5e9),
        (xl, 24, 2048, 16, 512, 2e-4, 26e9),
    ):
        model, training = config.model, config.training
        assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (layers, width, heads)
        assert (model.seq_length, model.vocab_size, model.ffn) == (2048, 50257, 4 * width)
        assert (training.global_batch_size, training.lr, training.train_tokens) == (batch, lr, tokens)
        assert (training.warmup_tokens, training.min_lr_ratio, training.weight_decay) == (375_000_000, 0.1, 0.1)
        assert (training.beta1, training.beta2, training.eps, training.clip_grad) == (0.9, 0.999, 1e-8, 1.0)
        assert config.sparsity.level == 0.75 and config.sparsity.pattern == "unstructured"


def test_where_a_run_may_differ_and_where_not(tmp_path):
    base = load_config(PretrainConfig, write(tmp_path, "{}"))
    elsewhere = ["run_dir=b", "parallel.tensor=2", "sparsity.execution=masked", "device=cpu", "checkpoint.interval=7"]
    moved = load_config(PretrainConfig, write(tmp_path, "{}"), elsewhere)
    assert run_differences(to_tree(base), to_tree(moved)) == []
    other = load_config(PretrainConfig, write(tmp_path, "{}"), ["sparsity.seed=9"])
    assert run_differences(to_tree(base), to_tree(other)) == ["sparsity.seed: 1234 -> 9"]
