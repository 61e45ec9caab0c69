"""One rank of a tiny training run that measures its memory and its traffic. Rank 0 prints JSON.

    engine_job.py TENSOR DATA STAGE PRECISION EXECUTION CHECKPOINTING [FAMILY [sequence] [muon]]

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe the ranks.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from live_logits import LiveLogits
from torch.distributed.tensor import DTensor

from spdf_dist.accounting.communication import communication
from spdf_dist.accounting.layout import layout_of
from spdf_dist.accounting.memory import activation_bytes, memory, state_bytes
from spdf_dist.base.rank_variables import discover
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.model.architecture import architecture_of, padded_vocab_size
from spdf_dist.model.gpt import build_gpt
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.groups import initialize
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.engine import Engine
from spdf_dist.training.setup import make_engine

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 32, "vocab_size": 301},
}
MODELS["llama"] = MODELS["gpt2"] | {
    "family": "llama",
    "num_key_value_heads": 2,
    "ffn_hidden_size": 176,
    "tie_embeddings": False,
}


def tree(
    tensor: int, data: int, stage: int, precision: str, execution: str, checkpointing: bool, *rest: str
) -> dict[str, Any]:
    return {
        "device": "cpu",
        "model": MODELS[rest[0] if rest else "gpt2"],
        "sparsity": {
            "level": 0.0 if execution == "dense" else 0.75,
            "execution": "masked" if execution == "dense" else execution,
        },
        "parallel": {"tensor": tensor, "data": data, "zero_stage": stage, "sequence": "sequence" in rest},
        "training": {
            "global_batch_size": 4 * data,
            "micro_batch_size": 2,
            "precision": precision,
            "optimizer": "muon" if "muon" in rest else "adamw",
            "activation_checkpointing": checkpointing,
        },
    }


OUTPUTS = ("tensor", "output_tensor", "output", "tensor_list")
"""Names of the argument of collectives that receives the result."""


class Traffic:
    """Bytes of the collectives with more than ``least`` bytes, by collective and group size."""

    def __init__(self, least: int = 64) -> None:
        self.least = least
        self.bytes: dict[str, int] = {}
        for name in (
            "all_reduce",
            "all_gather_into_tensor",
            "reduce_scatter_tensor",
            "all_gather",
            "reduce",
            "broadcast",
            "all_gather_single",  # FSDP2's names of all_gather_into_tensor and reduce_scatter_tensor
            "reduce_scatter_single",
        ):
            self.wrap(name)

    def wrap(self, name: str) -> None:
        plain = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else next(kwargs[key] for key in OUTPUTS if key in kwargs)
            tensors = first if isinstance(first, list | tuple) else [first]
            size = sum(t.numel() * t.element_size() for t in tensors)
            group = kwargs.get("group")
            key = f"{name}/{dist.get_world_size(group)}"
            if size > self.least:
                self.bytes[key] = self.bytes.get(key, 0) + size
            return plain(*args, **kwargs)

        setattr(dist, name, counted)


def storages(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind tensors."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(found.values())


def optimizer_state(engine: Engine) -> dict[str, int]:
    """Bytes of masters and moments, from the tensors of the optimizer."""
    masters = [p for group in engine.optimizer.param_groups for p in group["params"]] if engine.stage else []
    if engine.stage == 3:  # FSDP2 pads the slices of each parameter
        masters = [p.detach().clone() for p in masters]
    state = engine.optimizer.state.values()
    moments = [value for entry in state for key, value in entry.items() if key != "step" and value.numel() > 1]
    return {"masters": storages(masters), "moments": storages(moments)}


def main() -> None:
    values = [*map(int, sys.argv[1:4]), *sys.argv[4:6], sys.argv[6] == "1", *sys.argv[7:]]
    config: PretrainConfig = config_from_tree(PretrainConfig, tree(*values))  # type: ignore[arg-type]
    ranks = discover()
    assert ranks is not None
    traffic = Traffic()
    groups = initialize(ranks, config.parallel.tensor, config.parallel.data, "cpu")
    bf16 = config.training.precision == "bf16" and config.parallel.zero_stage < 3
    dtype = torch.bfloat16 if bf16 else torch.float32
    masks = PackedMasks.pack(RandomMasks(config.model, config.sparsity))
    execution = dict.fromkeys(architecture_of(config.model).linears, config.sparsity.execution)
    model = build_gpt(
        config.model,
        groups,
        masks=masks,
        execution=execution,
        dtype=dtype,
        activation_checkpointing=config.training.activation_checkpointing,
        sequence=config.parallel.sequence,
    )
    initialize_parameters(model, config.model, config.sparsity, 1)
    engine = make_engine(model, config, groups)
    generator = torch.Generator().manual_seed(groups.data_rank)
    shape = (config.training.micro_batch_size, config.model.seq_length)

    def batch() -> MicroBatch:
        ids = torch.randint(config.model.vocab_size, shape, generator=generator)
        return MicroBatch(ids, ids, 1)

    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    model.train()
    logits = LiveLogits(padded_vocab_size(config.model.vocab_size, groups.tensor_size) // groups.tensor_size)
    with logits, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        one = batch()
        loss = engine.model(one.tokens_BT, one.labels_BT)
    # Storages of gathered weights are empty after the forward pass of their layer.
    held = {storage.data_ptr(): storage.nbytes() for storage in kept.values() if storage.nbytes()}
    for tensor in [*model.parameters(), *model.buffers()]:
        if not isinstance(tensor, DTensor):
            held.pop(tensor.untyped_storage().data_ptr(), None)
    activations = sum(held.values())
    del loss
    kept.clear()
    if config.parallel.zero_stage == 3:
        model.reshard()  # a backward pass would free the embeddings
    gc.collect()

    steps = config.training.global_batch_size // (config.training.micro_batch_size * groups.data_size)
    tokens = config.training.global_batch_size * config.model.seq_length
    traffic.bytes.clear()
    engine.step([batch() for _ in range(steps)], tokens, 1e-3)
    layout = layout_of(config, groups.world_size, "cpu")
    if config.sparsity.level == 0:
        assert layout.execution == "dense"
    weights = [p.data for p in model.parameters() if not isinstance(p, DTensor)]
    told = {
        "weights": storages(weights),
        **optimizer_state(engine),
        "activations": activations,
        "logits": logits.most,
        "traffic": traffic.bytes,
        "expected_state": state_bytes(config.model, config.sparsity, layout),
        "expected_activations": activation_bytes(config.model, layout),
        "expected_memory": memory(config.model, config.sparsity, layout, "cpu"),
        "expected_traffic": communication(config.model, config.sparsity, layout, config.training.global_batch_size),
    }
    if groups.rank == 0:
        print(json.dumps(told))


main()
