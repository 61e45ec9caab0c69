"""Measures a whole training step of a config in each execution, for ``spdf bench step``.

One process runs the executions in turn.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from spdf_kernels import SparsityPattern
from spdf_kernels.bench import interleave, machine, ratio, spread, thread_count
from spdf_kernels.pairs import clock_name
from spdf_kernels.state import model_state, total_summary

from spdf_dist.accounting.flops import training_flops
from spdf_dist.base.progress_bar import ProgressBar
from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.config.schema import PretrainConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.linear import ParallelLinear
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.engine import Engine
from spdf_dist.training.setup import build_model, make_engine, start

EXECUTIONS = ("compressed", "masked", "dense")


def build_engine(config: PretrainConfig, groups: Groups, execution: str) -> Engine:
    """An engine over a new model, as a run builds it; `dense` has no masks."""
    sparsity = SparsityConfig() if execution == "dense" else config.sparsity
    masks = PackedMasks.pack({} if execution == "dense" else RandomMasks(config.model, sparsity))
    executions = {} if execution == "dense" else dict.fromkeys(architecture_of(config.model).linears, execution)
    model = build_model(config, config.model, groups, masks, executions)
    initialize_parameters(model, config.model, sparsity, config.seed)
    return make_engine(model, config, groups)


def random_batch(config: PretrainConfig, groups: Groups) -> list[MicroBatch]:
    """One global batch of random token ids, in micro-batches."""
    size, length = config.training.micro_batch_size, config.model.seq_length
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(config.training.global_batch_size // size):
        ids_BT1 = torch.randint(config.model.vocab_size, (size, length + 1), generator=generator).to(groups.device)
        batches.append(MicroBatch(ids_BT1[:, :-1].contiguous(), ids_BT1[:, 1:].contiguous(), number))
    return batches


def patterns_of(engine: Engine) -> list[SparsityPattern]:
    """The patterns of a compressed model's sparse linears."""
    modules = engine.model.modules()
    return [m.pattern for m in modules if isinstance(m, ParallelLinear) and m.pattern is not None]


def state_summary(patterns: Sequence[SparsityPattern]) -> dict[str, Any]:
    """Total bytes of model state of the patterns on each path, and the seconds that preparing all of them takes."""
    progress = ProgressBar(patterns, desc="patterns", unit="pattern", file=sys.stderr)
    return {"patterns": len(patterns), **total_summary(model_state(pattern.mask()) for pattern in progress)}


def bench_step(config: PretrainConfig, rounds: int, threads: int) -> dict[str, Any]:
    """Measure forward, backward and AdamW of one global batch, in each execution.

    Returns:
        ``results``: for each execution milliseconds (median, quartiles), ``tokens_per_s``, ``speedup`` over dense with
        a lower confidence bound, the ``theoretical`` speed-up by FLOPs, and the number of trained ``parameters``.
        ``state``: the result of `state_summary`.
        The other keys describe the machine and the config.
    """
    groups = start(config, SINGLE_PROCESS)
    batch = random_batch(config, groups)
    tokens = config.training.global_batch_size * config.model.seq_length
    with thread_count(threads):
        engines = {execution: build_engine(config, groups, execution) for execution in EXECUTIONS}
        state = state_summary(patterns_of(engines["compressed"]))

        def step(engine: Engine) -> None:
            engine.step(batch, tokens, config.training.lr)

        times = interleave({name: partial(step, engine) for name, engine in engines.items()}, rounds, threads)
    dense_flops = training_flops(config.model)
    results = {}
    for name, engine in engines.items():
        speedup, bound = ratio(times["dense"], times[name])
        measured = spread(times[name])
        flops = dense_flops if name == "dense" else training_flops(config.model, config.sparsity)
        results[name] = {
            **measured,
            "tokens_per_s": 1e3 * tokens / measured["median_ms"],
            "speedup": speedup,
            "speedup_lower": bound,
            "theoretical": 1.0 if name == "masked" else dense_flops / flops,
            "parameters": sum(parameter.numel() for parameter in engine.model.parameters()),
        }
    return {
        "machine": machine(),
        "threads": threads,
        "clock": clock_name(threads),
        "tokens": tokens,
        "seq_length": config.model.seq_length,
        "precision": config.training.precision,
        "sparsity": config.sparsity.level,
        "rounds": rounds,
        "state": state,
        "results": results,
    }
