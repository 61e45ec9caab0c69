"""Batches of fine-tuning: equal samples and dropout seeds, and each sample once per epoch, for any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import FinetuneConfig, ModelConfig
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.training.task_batches import TaskBatches

MODEL = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1, seq_length=64, vocab_size=300)


@pytest.fixture(scope="module")
def batches(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    for name, count in (("train", 21), ("validation", 7)):
        rows = [f'"name[House {n}]","The house {"and the house " * (n % 5)}has {n} windows."' for n in range(count)]
        (folder / f"{name}.csv").write_text("mr,ref\n" + "\n".join(rows) + "\n")
    task = {"checkpoint": "x", "train": f"{folder}/train.csv", "validation": f"{folder}/validation.csv"}
    training = {"global_batch_size": 8, "micro_batch_size": 2}
    config = config_from_tree(FinetuneConfig, {"finetune": task | {"warmup_steps": 1}, "training": training})
    tokenizer = load_tokenizer(tiny_data.tokenizer)

    def of(rank: int, ranks: int, model: ModelConfig = MODEL) -> TaskBatches:
        groups = SimpleNamespace(data_rank=rank, data_size=ranks, world_size=ranks, device=torch.device("cpu"))
        return TaskBatches(config, model, None, tokenizer, groups)

    return of


@pytest.mark.parametrize("ranks", [2, 4])
def test_micro_batches_and_their_seeds_do_not_depend_on_the_ranks(ranks, batches):
    def content(micro_batches):
        """The micro-batches with a target. Those without one only make the numbers of micro-batches equal."""
        return sorted(
            (m.dropout_seed, m.tokens_BT.tolist(), m.labels_BT.tolist())
            for m in micro_batches
            if (m.labels_BT != -100).any()
        )

    alone, parts = batches(0, 1), [batches(rank, ranks) for rank in range(ranks)]
    seeds = []
    for step in (1, 2, 3, 4):
        whole, shares = alone.batch(step), [part.batch(step) for part in parts]
        assert content(whole.micro_batches) == content(m for share in shares for m in share.micro_batches)
        assert len({len(share.micro_batches) for share in shares}) == 1
        counted = sum(int((m.labels_BT != -100).sum()) for share in shares for m in share.micro_batches)
        assert counted == whole.target_tokens == shares[-1].target_tokens
        seeds += [m.dropout_seed for m in whole.micro_batches]
    assert len(set(seeds)) == len(seeds)
    assert content(alone.validation()) == content(m for part in parts for m in part.validation())
    # The epoch's 21 samples: two full batches and one of five.
    assert sum(len(m.tokens_BT) for step in (1, 2, 3) for m in alone.batch(step).micro_batches) == 21


def test_pairs_that_do_not_fit_are_cut_and_counted(batches):
    whole = batches(0, 1, replace(MODEL, seq_length=512))
    lengths = [len(example.ids) for example in whole.examples]
    assert len(whole.data_lines()) == 1 and max(lengths) > min(lengths)
    limit = sorted(lengths)[10]  # some pairs have exactly this length
    short = batches(0, 1, replace(MODEL, seq_length=limit))
    assert [len(example.ids) for example in short.examples] == [min(length, limit) for length in lengths]
    assert [a for a in short.examples if len(a.ids) < limit] == [a for a in whole.examples if len(a.ids) < limit]
    cut = sum(length > limit for length in lengths)
    _, training, *_ = short.data_lines()
    assert training.startswith(f"WARNING: {cut} of 21 training pairs have more than {limit} tokens")
