"""One rank: trains with dropout and sequence parallelism, and prints what each rank dropped, as JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from parity_job import LRS, batches, config_of
from torch import Tensor

from spdf_dist.base.rank_variables import discover
from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.gpt import build_gpt
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.groups import initialize
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.setup import make_engine

STEPS = 3


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:16]


def train(family: str, recompute: bool) -> dict[str, Any]:
    """Losses, the masks and streams of the first forward pass, and a digest of the parameters that all ranks hold."""
    config = config_of(
        {"model": family, "execution": "masked", "tensor": 2, "zero": 1, "sequence": True, "recompute": recompute}
    )
    model_config = ModelConfig(**{**vars(config.model), "dropout": 0.2})
    parallel_state.destroy_model_parallel()
    groups = initialize(discover(), 2, None, "cpu")
    model = build_gpt(
        model_config,
        groups,
        masks=RandomMasks(model_config, config.sparsity),
        execution={},
        dtype=torch.float32,
        activation_checkpointing=recompute,
        sequence=True,
    )
    initialize_parameters(model, model_config, config.sparsity, config.seed)
    engine = make_engine(model, config, groups)
    events: list[tuple[str, list[int], str]] = []
    dropout, attention = F.dropout, F.scaled_dot_product_attention

    def recorded_dropout(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = dropout(x, *args, **kwargs)
        events.append(("dropout", list(y.shape), digest(y == 0)))
        return y

    def recorded_attention(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        events.append(("attention", list(q.shape), digest(torch.get_rng_state())))
        return attention(q, *args, **kwargs)

    losses, norms = [], []
    for step, (ids, lr) in enumerate(list(zip(batches(), LRS, strict=True))[:STEPS]):
        micro = [MicroBatch(part[:, :-1].contiguous(), part[:, 1:].contiguous(), 7 + step) for part in ids.split(8)]
        with (
            mock.patch.object(F, "dropout", recorded_dropout),
            mock.patch.object(F, "scaled_dot_product_attention", recorded_attention),
        ):
            result = engine.step(micro[:1] if step == 0 else micro, 16 * 16, lr)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if step == 0:
            first, common = list(events), digest(torch.get_rng_state())
    held = [digest(parameter) for parameter in model.parameters() if not parameter.tensor_model_parallel]
    own = {"events": first, "common": common, "replicated": held}
    return {"losses": losses, "norms": norms, "ranks": groups.allgather(own)}


if __name__ == "__main__":
    results = {
        f"{family} {recompute}": train(family, recompute) for family in ("gpt2", "llama") for recompute in (False, True)
    }
    if discover().rank == 0:
        print("RESULT " + json.dumps(results))
