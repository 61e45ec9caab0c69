"""A job of several ranks in one process: threads that write a tiny model's checkpoint at any topology."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spdf_dist.base.collective import Collective
from spdf_dist.checkpoint.manifest import KINDS, Kind, global_shapes
from spdf_dist.checkpoint.write import CheckpointWriter, single_writer, whole
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.parallel.layout import TensorShard
from spdf_dist.sparsity.masks import BoolArray, RandomMasks

MODEL = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=4, ffn_hidden_size=20, seq_length=6, vocab_size=11)
SPARSE = SparsityConfig(level=0.75, seed=7)
COLUMN = ("W_Q", "W_K", "W_V", "W_G", "W_I", "b_Q", "b_K", "b_V", "b_I")
ROW = ("W_D", "W_O")
VOCABULARY = ("embedding.word", "head.weight")

Tensors = dict[Kind, dict[str, torch.Tensor]]


def make_tensors(masks: dict[str, BoolArray], seed: int = 0, model: ModelConfig = MODEL) -> Tensors:
    """Dense weights and moments, with zeros at pruned entries."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for kind in KINDS:
        tensors[kind] = {}
        for name, shape in global_shapes(model).items():
            tensor = torch.randn(shape, generator=generator)
            if name in masks:
                tensor[~torch.from_numpy(masks[name])] = 0.0
            tensors[kind][name] = tensor
    return tensors


def masks_of(sparsity: SparsityConfig | None, model: ModelConfig = MODEL) -> dict[str, BoolArray]:
    return {} if sparsity is None else dict(RandomMasks(model, sparsity))


def local_shards(
    rank: int, ranks: int, masks: dict[str, BoolArray], model: ModelConfig = MODEL
) -> Iterator[TensorShard]:
    """The tensors of tensor rank ``rank`` of ``ranks``, with the vocabulary padded to a multiple of 4 x ranks."""
    for name, shape in global_shapes(model).items():
        short = name.rsplit(".", 1)[-1]
        dim = 0 if short in COLUMN or name in VOCABULARY else 1 if short in ROW else None
        start, stop = 0, shape[0]
        if dim is not None:
            size = shape[dim]
            if name in VOCABULARY:
                size = -(-size // (4 * ranks)) * 4 * ranks
            start, stop = size * rank // ranks, min(size * (rank + 1) // ranks, shape[dim])
            stop = max(start, stop)
        mask = None
        if name in masks:
            mask = torch.from_numpy(np.array(masks[name]))
            mask = mask if dim is None else mask.narrow(dim, start, stop - start)
        yield TensorShard(name, shape, dim, start, stop, 0, 0, mask)


def local_tensor(shard: TensorShard, tensor: torch.Tensor) -> torch.Tensor:
    """The dense slice of a global tensor for a shard."""
    if shard.dim is None:
        return tensor
    return tensor[tuple(slice(shard.start, shard.stop) if d == shard.dim else slice(None) for d in range(tensor.dim()))]


def responsible(
    rank: int,
    ranks: int,
    masks: dict[str, BoolArray],
    tensors: Tensors,
    values: bool = True,
    model: ModelConfig = MODEL,
) -> Iterator[tuple[Kind, TensorShard, torch.Tensor]]:
    """The shards that a rank writes: its slices, and on rank 0 replicated tensors. Sparse ones are values or dense."""
    for shard in local_shards(rank, ranks, masks, model):
        if shard.dim is None and rank > 0:
            continue
        for kind in tensors:
            local = local_tensor(shard, tensors[kind][shard.name])
            yield kind, shard, local[shard.mask] if values and shard.mask is not None else local


class Threads(Collective):
    """Ranks as threads, with a common barrier and list."""

    def __init__(self, rank: int, barrier: threading.Barrier, objects: list[Any]) -> None:
        self.rank, self.world_size = rank, len(objects)
        self.meeting, self.objects = barrier, objects

    def allgather(self, value: Any) -> list[Any]:
        self.objects[self.rank] = value
        self.meeting.wait()
        found = list(self.objects)
        self.meeting.wait()
        return found


def run_ranks(ranks: int, work: Callable[[int, Threads], Any]) -> list[Any]:
    """Run ``work`` on every rank. Returns the results or errors by rank."""
    barrier, objects = threading.Barrier(ranks, timeout=30), [None] * ranks
    results: list[Any] = [None] * ranks

    def one(rank: int) -> None:
        try:
            results[rank] = work(rank, Threads(rank, barrier, objects))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def manifest_of(sparsity: SparsityConfig | None, **more: Any) -> dict[str, Any]:
    return {
        "kind": "pretrain",
        "model": asdict(MODEL),
        "sparsity": None if sparsity is None else asdict(sparsity),
        "consumed_tokens": 480,
        "optimizer": {"step": 5},
        "state": {"best_validation": None, "next_sample": 40},
        **more,
    }


def save(
    root: Path,
    step: int,
    ranks: int = 1,
    sparsity: SparsityConfig | None = SPARSE,
    tensors: Tensors | None = None,
    values: bool = True,
    masks: dict[str, BoolArray] | None = None,
    model: ModelConfig = MODEL,
    **more: Any,
) -> list[Any]:
    """Write a checkpoint with ``ranks`` tensor ranks. Returns the folder or error of each rank."""
    masks = masks_of(sparsity, model) if masks is None else masks
    content = tensors or make_tensors(masks, model=model)

    def work(rank: int, together: Threads) -> Path:
        writer = CheckpointWriter(root, step, together)
        return writer.write(
            responsible(rank, ranks, masks, content, values, model),
            masks=masks,
            config_yaml="seed: 1\n",
            tokenizer=None,
            manifest=manifest_of(sparsity, model=asdict(model), **more),
            rank_state={"rng": f"{rank:02x}"},
        )

    return run_ranks(ranks, work)


def write_gpt2_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer with a few merges as GPT-2's two files. Returns the folder."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["t h", "th e", "Ġ the", "i n", "Ġ in", "e r"]
    entries = sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in merges] + ["<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


def save_with_tokenizer(folder: Path, tokenizer: Path) -> Path:
    """Write a dense checkpoint with a tokenizer and a vocabulary of its size. Returns the folder."""
    model = replace(MODEL, vocab_size=load_tokenizer(tokenizer).vocab_size)
    return single_writer(folder, 5).write(
        (("model", whole(name, tensor), tensor) for name, tensor in make_tensors({}, model=model)["model"].items()),
        masks=None,
        config_yaml="seed: 1\n",
        tokenizer=tokenizer,
        manifest=manifest_of(None, model=asdict(model)),
    )
