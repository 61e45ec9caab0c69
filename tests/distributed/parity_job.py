"""One rank: trains every case of a world size in turn, and prints losses and norms as JSON."""

from __future__ import annotations

import functools
import json
import sys

import reference_llama
import torch
from megatron.core import parallel_state
from reference_gpt import shapes, train

from spdf_dist.base.rank_variables import discover
from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.model.gpt import build_gpt
from spdf_dist.model.initialize import initial_tensor, initialize_parameters
from spdf_dist.parallel.groups import initialize
from spdf_dist.parallel.layout import shards_of
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.engine import parameter_groups
from spdf_dist.training.setup import make_engine

STEPS = 20
SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 16, "vocab_size": 61}
"""61 vocabulary entries, a prime number, so that every tensor size needs padding."""
LLAMA = SIZES | {"family": "llama", "num_key_value_heads": 2, "ffn_hidden_size": 88}
MODELS = {
    "gpt2": SIZES,
    "llama": LLAMA,
    "llama_scaled": LLAMA
    | {
        "num_key_value_heads": 4,
        "tie_embeddings": False,
        "rope_theta": 500.0,
        "rope_scaling": {
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 8,
        },
    },
}
LRS = [5e-3 * min(1.0, (step + 1) / 5) for step in range(STEPS)]


def config_of(case: dict) -> PretrainConfig:
    return config_from_tree(
        PretrainConfig,
        {
            "device": "cpu",
            "model": MODELS[case.get("model", "gpt2")],
            "sparsity": {"level": case.get("level", 0.75), "execution": case["execution"]},
            "parallel": {"tensor": case["tensor"], "zero_stage": case["zero"], "sequence": case.get("sequence", False)},
            "training": {
                "global_batch_size": 16,
                "micro_batch_size": case.get("micro", 4),
                "precision": case.get("precision", "fp32"),
                "clip_grad": 0.5,
                "optimizer": case.get("optimizer", "adamw"),
                "activation_checkpointing": case.get("recompute", False),
            },
        },
    )


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    # Tokens are not uniform, so that the model can learn and the norm changes.
    return [torch.randint(0, 61, (16, 17), generator=generator) ** 2 // 61 for _ in range(STEPS)]


def reference(level: float, kind: str = "gpt2", momentum: float | None = None) -> dict:
    config = config_of({"execution": "masked", "tensor": 1, "zero": 1, "level": level, "model": kind})
    model = config.model
    tensors = architecture_of(model).tensors
    if model.family == "gpt2":
        names = shapes(model.num_layers, model.hidden_size, model.ffn, model.vocab_size, model.seq_length)
        assert {name: tensor.shape for name, tensor in tensors.items()} == names
        network = None
    else:
        network = functools.partial(reference_llama.forward, model=MODELS[kind])
    initial = {name: initial_tensor(tensor, config.seed) for name, tensor in tensors.items()}
    masks = {name: torch.from_numpy(mask) for name, mask in RandomMasks(model, config.sparsity).items()}
    losses, norms, _ = train(
        initial,
        masks,
        batches(),
        layers=2,
        heads=4,
        lrs=LRS,
        weight_decay=0.1,
        clip=0.5,
        network=network,
        momentum=momentum,
    )
    return {"losses": losses, "norms": norms}


def run_case(case: dict) -> dict:
    config = config_of(case)
    parallel_state.destroy_model_parallel()
    groups = initialize(discover(), case["tensor"], None, "cpu")
    bf16 = config.training.precision == "bf16" and case["zero"] < 3
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = build_gpt(
        config.model,
        groups,
        masks=RandomMasks(config.model, config.sparsity),
        execution=dict.fromkeys(architecture_of(config.model).linears, case["execution"]),
        dtype=dtype,
        activation_checkpointing=config.training.activation_checkpointing,
        sequence=config.parallel.sequence,
    )
    initialize_parameters(model, config.model, config.sparsity, config.seed)
    engine = make_engine(model, config, groups)
    size = config.training.micro_batch_size
    losses, norms = [], []
    for ids, lr in zip(batches(), LRS, strict=True):
        micro = [
            MicroBatch(part[:, :-1].contiguous(), part[:, 1:].contiguous(), 0)
            for part in ids.split(size)[groups.data_rank :: groups.data_size]
        ]
        result = engine.step(micro, 16 * 16, lr)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    pruned = 0
    for parameter in model.parameters():
        tensors = [engine.full_parameter(parameter)]
        tensors += [engine.full_moment(parameter, key) for key in engine.moments_of(parameter)]
        for shard in shards_of(parameter):
            if shard.mask is not None and parameter.dim() > 1:
                rows = slice(shard.offset, shard.offset + shard.length)
                pruned += sum(int(tensor[rows][~shard.mask].count_nonzero()) for tensor in tensors)
    by_role = [
        sorted(shard.name for parameter in group["params"] for shard in shards_of(parameter))
        for group in parameter_groups(model, 0.1)
    ]
    return {"case": case, "losses": losses, "norms": norms, "pruned": pruned, "groups": by_role}


if __name__ == "__main__":
    cases = json.loads(sys.argv[1])
    results = [run_case(case) for case in cases]
    if discover().rank == 0:
        print("RESULT " + json.dumps(results))
