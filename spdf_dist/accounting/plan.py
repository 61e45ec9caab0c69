"""The plan of a run, computed from its config: for `--dry-run` and for the first lines of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spdf_dist.accounting.communication import communication
from spdf_dist.accounting.flops import TRAINING_FACTOR, executed_flops, linears_share, training_flops
from spdf_dist.accounting.gpu_kernels import skipped_block
from spdf_dist.accounting.layout import Layout, valid_layout
from spdf_dist.accounting.memory import memory
from spdf_dist.accounting.parameters import parameter_counts, real_sparsity, total_parameters
from spdf_dist.accounting.phases import phases, run_flops
from spdf_dist.accounting.text_table import text_table
from spdf_dist.base.numbers import counted
from spdf_dist.config.budget import tokens_per_step, total_steps, warmup_steps
from spdf_dist.config.schema import AnyConfig, FinetuneConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.sparsity.assignment import remarks
from spdf_dist.sparsity.masks import logical_weights


def plan(config: PretrainConfig, world_size: int, held_out: int | None = None) -> dict[str, Any]:
    """Parameters, tokens, steps, FLOPs, layout, memory per rank and traffic, as a JSON object.

    ``held_out`` is the number of sequences per validation; None: as many as the config asks for.

    Raises UserError when ``parallel.tensor`` does not divide ``world_size``, or the batch does not divide over the data
    ranks.
    """
    device = "cpu" if config.device == "cpu" else "cuda"  # with `auto`, memory is counted as on a GPU
    model, sparsity, training = config.model, config.sparsity, config.training
    layout = valid_layout(config, model, sparsity, world_size, device)
    batch, per_sequence = training.global_batch_size, training_flops(model, sparsity)
    executed = executed_ratio(model, sparsity, layout, device)
    if held_out is None:
        held_out = config.validation.batches * batch if config.data.validation else 0
    return {
        **common_summary(config, model, sparsity, layout, device),
        "sparsity_asked": sparsity.level,
        "train_tokens": training.train_tokens,
        "tokens_per_step": tokens_per_step(config),
        "steps": total_steps(config),
        "warmup_steps": warmup_steps(config),
        "flops_per_step": per_sequence * batch,
        "executed_flops_per_step": round(executed * per_sequence * batch),
        "total_flops": run_flops(config),
        "phases": [{"steps": steps, "sparsity": real_sparsity(model, phase)} for steps, phase in phases(config)],
        "validation": validation_summary(
            held_out,
            held_out * per_sequence // TRAINING_FACTOR,
            executed_ratio(model, sparsity, layout, device, validates=True),
            total_steps(config),
            config.validation.interval,
        ),
    }


@dataclass(frozen=True)
class TaskSize:
    """The size of a fine-tuning task's data, after encoding. FLOPs are the model's, without padding."""

    lengths: Sequence[int]
    """Input tokens of each training pair."""
    target_tokens: int
    """Of all training pairs."""
    held_out: Sequence[int]
    """Input tokens of each validation pair."""
    steps_per_epoch: int
    steps: int
    """Of the whole run."""
    tokens: int
    """Target tokens of all steps."""


def finetuning_plan(
    config: FinetuneConfig,
    model: ModelConfig,
    sparsity: SparsityConfig | None,
    world_size: int,
    device: str,
    size: TaskSize,
) -> dict[str, Any]:
    """What ``plan`` tells, of a fine-tuning run, under the same names where there is one, as a JSON object.

    Args:
        model: the architecture of the checkpoint.
        sparsity: that of the model under training; None for a dense model.
        device: `cpu` or `cuda`.

    Raises UserError as ``plan`` does.
    """
    layout = valid_layout(config, model, sparsity, world_size, device)
    steps, epochs = size.steps, size.steps / size.steps_per_epoch
    flops = {length: training_flops(model, sparsity, length) for length in {*size.lengths, *size.held_out}}
    total = round(epochs * sum(flops[length] for length in size.lengths))
    executed = executed_ratio(model, sparsity, layout, device)
    return {
        **common_summary(config, model, sparsity, layout, device, size.lengths),
        "train_tokens": size.tokens,
        "tokens_per_step": round(size.tokens / steps),
        "steps": steps,
        "warmup_steps": config.finetune.warmup_steps,
        "pairs": len(size.lengths),
        "target_tokens": size.target_tokens,
        "longest": max(size.lengths) + 1,
        "epochs": epochs,
        "steps_per_epoch": size.steps_per_epoch,
        "flops_per_step": total / steps,
        "executed_flops_per_step": executed * total / steps,
        "total_flops": total,
        "validation": validation_summary(
            len(size.held_out),
            sum(flops[length] for length in size.held_out) // TRAINING_FACTOR,
            executed_ratio(model, sparsity, layout, device, validates=True),
            steps,
            size.steps_per_epoch,
        ),
    }


def executed_ratio(
    model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout, device: str, *, validates: bool = False
) -> float:
    """Executed FLOPs over model FLOPs, in training or, without recomputation, in validation."""
    expanded = False
    if device == "cuda" and sparsity is not None:
        expanded = not skipped_block(model, sparsity, layout.precision, layout.tensor)
    recomputes = layout.activation_checkpointing and not validates
    return executed_flops(model, sparsity, layout.execution, recomputes, expanded=expanded) / training_flops(
        model, sparsity
    )


def validation_summary(sequences: int, flops: int, executed: float, steps: int, interval: int) -> dict[str, Any]:
    """Size and number of the validations of a run: after every ``interval`` steps, and after the last step.

    ``flops`` are the model FLOPs of one validation, ``executed`` is ``executed_ratio``.
    """
    times = -(-steps // interval) if sequences else 0
    return {"sequences": sequences, "times": times, "flops": flops, "executed_flops": executed * flops}


def common_summary(
    config: AnyConfig,
    model: ModelConfig,
    sparsity: SparsityConfig | None,
    layout: Layout,
    device: str,
    lengths: Sequence[int] = (),
) -> dict[str, Any]:
    """The values that pre-training and fine-tuning compute alike.

    ``lengths`` are the tokens of each sequence; empty: all sequences have the model's length.
    """
    training = config.training
    mean = round(sum(lengths) / len(lengths)) if lengths else None
    return {
        "schema_version": 1,
        "run_dir": config.run_dir,
        "parameters": total_parameters(model),
        "nonzeros": total_parameters(model, sparsity),
        "parameters_by_part": parameter_counts(model, sparsity),
        "sparsity": 0.0 if sparsity is None else real_sparsity(model, sparsity),
        "remarks": [] if sparsity is None else remarks(logical_weights(model), sparsity),
        "pattern": "unstructured" if sparsity is None else sparsity.pattern,
        "world_size": layout.tensor * layout.data,
        "layout": asdict(layout) | {"accumulation": layout.accumulation(training.global_batch_size)},
        "fewer_flops_than_dense": training_flops(model, None, mean) / training_flops(model, sparsity, mean),
        "linears_share": linears_share(model, mean),
        "memory_device": device,
        "memory_bytes": memory(
            model, sparsity, layout, device, config.kernels.code_budget_mb, max(lengths, default=None)
        ),
        "communication_bytes_per_step": communication(model, sparsity, layout, training.global_batch_size, mean),
    }


def bytes_text(count: float) -> str:
    """A number of bytes with a decimal unit, such as 1.5 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def plan_text(summary: Mapping[str, Any]) -> str:
    """The result of ``plan`` or ``finetuning_plan`` as text."""
    layout, sent = summary["layout"], summary["communication_bytes_per_step"]
    sparse = summary["sparsity"] > 0
    lines = [
        f"parameters    {summary['parameters']:,}"
        + (
            f"; {summary['nonzeros']:,} kept at {summary['sparsity']:.6g} {summary['pattern']}"
            if sparse
            else " (dense)"
        ),
        *(f"REMARK        {remark}" for remark in summary["remarks"]),
        f"tokens        {summary['train_tokens']:,} in {counted(summary['steps'], 'step')} of "
        f"{summary['tokens_per_step']:,}, {summary['warmup_steps']:,} of them warm-up",
        f"layout        {counted(summary['world_size'], 'rank')}: tensor {layout['tensor']} x data {layout['data']}, "
        + ("sequence-parallel, " if layout["sequence"] else "")
        + f"ZeRO {layout['zero_stage']}, {counted(layout['accumulation'], 'micro-batch', 'micro-batches')} of "
        f"{layout['micro_batch']}, {layout['precision']}, {layout['execution']}",
        f"model FLOPs   {summary['flops_per_step']:.4g} per step, {summary['total_flops']:.4g} in all, "
        f"{summary['fewer_flops_than_dense']:.2f} times fewer than dense; linear layers have "
        f"{summary['linears_share']:.0%} of the dense model's",
        f"traffic       {bytes_text(sent['tensor_sent'])} tensor-parallel and {bytes_text(sent['data_sent'])} "
        "data-parallel, sent per rank and step",
        "",
        text_table(
            (f"memory per rank ({'GPU' if summary['memory_device'] == 'cuda' else 'CPU'})", "bytes", ""),
            [(part, f"{count:,}", bytes_text(count)) for part, count in summary["memory_bytes"].items() if count],
        ),
    ]
    return "\n".join(lines)
