"""The plan of a run, computed from its config: for `spdf pretrain --dry-run` and the first lines of a run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from spdf_dist.accounting.communication import communication
from spdf_dist.accounting.flops import executed_flops, linears_share, training_flops
from spdf_dist.accounting.gpu_kernels import skipped_block
from spdf_dist.accounting.layout import Layout, layout_of
from spdf_dist.accounting.memory import activation_bytes, memory, state_bytes, structure_bytes
from spdf_dist.accounting.parameters import parameter_counts, real_sparsity, total_parameters
from spdf_dist.accounting.phases import phases, run_flops
from spdf_dist.accounting.text_table import text_table
from spdf_dist.config.budget import tokens_per_step, total_steps, warmup_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import FinetuneConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.config.validate import validate_batch
from spdf_dist.sparsity.assignment import remarks
from spdf_dist.sparsity.masks import logical_weights


def device_kind(config: PretrainConfig) -> str:
    """`cpu` where the config names it; otherwise `cuda`, so that memory is counted as on a GPU."""
    return "cpu" if config.device == "cpu" else "cuda"


def plan(config: PretrainConfig, world_size: int) -> dict[str, Any]:
    """Parameters, tokens, steps, FLOPs, layout, memory per rank and traffic, as a JSON object.

    Raises UserError when ``parallel.tensor`` does not divide ``world_size``, or the batch does not divide over the data
    ranks.
    """
    tensor = config.parallel.tensor
    if world_size % tensor:
        raise UserError(f"parallel.tensor: {tensor} does not divide the {world_size} ranks")
    device = device_kind(config)
    layout = layout_of(config, world_size, device)
    validate_batch(config, layout.data)
    model, sparsity, training = config.model, config.sparsity, config.training
    per_sequence = training_flops(model, sparsity)
    return {
        "schema_version": 1,
        "run_dir": config.run_dir,
        "parameters": total_parameters(model),
        "nonzeros": total_parameters(model, sparsity),
        "parameters_by_part": parameter_counts(model, sparsity),
        "sparsity": real_sparsity(model, sparsity),
        "sparsity_asked": sparsity.level,
        "remarks": remarks(logical_weights(model), sparsity),
        "pattern": sparsity.pattern,
        "train_tokens": training.train_tokens,
        "tokens_per_step": tokens_per_step(config),
        "steps": total_steps(config),
        "warmup_steps": warmup_steps(config),
        "world_size": world_size,
        "layout": asdict(layout) | {"accumulation": layout.accumulation(training.global_batch_size)},
        "flops_per_step": per_sequence * training.global_batch_size,
        "executed_flops_per_step": training.global_batch_size
        * executed_flops(
            model,
            sparsity,
            layout.execution,
            layout.activation_checkpointing,
            expanded=device == "cuda" and not skipped_block(model, sparsity, layout.precision, layout.tensor),
        ),
        "total_flops": run_flops(config),
        "phases": [{"steps": steps, "sparsity": real_sparsity(model, phase)} for steps, phase in phases(config)],
        "fewer_flops_than_dense": training_flops(model) / per_sequence,
        "linears_share": linears_share(model),
        "memory_device": device,
        "memory_bytes": memory(model, sparsity, layout, device, config.kernels.code_budget_mb),
        "communication_bytes_per_step": communication(model, sparsity, layout, training.global_batch_size),
    }


def finetuning_plan(
    config: FinetuneConfig,
    model: ModelConfig,
    sparsity: SparsityConfig | None,
    world_size: int,
    device: str,
    *,
    longest: int,
    steps: int,
    tokens: int,
    flops: int,
) -> dict[str, Any]:
    """Size, FLOPs and memory per rank of a fine-tuning run, under the names that ``plan`` uses.

    Args:
        model: the architecture of the checkpoint.
        sparsity: that of the model under training; None for a dense model.
        longest: tokens of the longest sequence.
        steps: optimizer steps of the run.
        tokens: target tokens of all steps.
        flops: model FLOPs of all steps, without padding.
    """
    training, parallel = config.training, config.parallel
    skips = sparsity is None or bool(skipped_block(model, sparsity, training.precision, parallel.tensor))
    execution = "dense" if sparsity is None or not sparsity.is_sparse else config.sparsity.execution
    if execution == "auto":
        execution = "compressed" if device == "cpu" or skips else "masked"
    layout = Layout(
        tensor=parallel.tensor,
        data=world_size // parallel.tensor,
        zero_stage=parallel.zero_stage,
        micro_batch=training.micro_batch_size,
        execution=execution,
        precision=training.precision,
        activation_checkpointing=training.activation_checkpointing,
        sequence=parallel.sequence,
    )
    executed = executed_flops(
        model, sparsity, execution, training.activation_checkpointing, expanded=device == "cuda" and not skips
    )
    needed = state_bytes(model, sparsity, layout)
    needed |= structure_bytes(model, sparsity, layout, device, config.kernels.code_budget_mb)
    needed["activations"] = sum(activation_bytes(replace(model, seq_length=longest), layout, device).values())
    return {
        "parameters": total_parameters(model),
        "nonzeros": total_parameters(model, sparsity),
        "sparsity": 0.0 if sparsity is None else real_sparsity(model, sparsity),
        "tokens_per_step": round(tokens / steps),
        "steps": steps,
        "flops_per_step": flops / steps,
        "executed_flops_per_step": flops / steps * executed / training_flops(model, sparsity),
        "total_flops": flops,
        "memory_bytes": needed | {"total": sum(needed.values())},
    }


def bytes_text(count: float) -> str:
    """A number of bytes with a decimal unit, such as 1.5 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def plan_text(facts: dict[str, Any]) -> str:
    """The result of ``plan`` as text."""
    layout, sent = facts["layout"], facts["communication_bytes_per_step"]
    sparse = facts["sparsity"] > 0
    lines = [
        f"parameters    {facts['parameters']:,}"
        + (f"; {facts['nonzeros']:,} kept at {facts['sparsity']:.6g} {facts['pattern']}" if sparse else " (dense)"),
        *(f"REMARK        {remark}" for remark in facts["remarks"]),
        f"tokens        {facts['train_tokens']:,} in {facts['steps']:,} steps of {facts['tokens_per_step']:,}, "
        f"{facts['warmup_steps']:,} of them warm-up",
        f"layout        {facts['world_size']} ranks: tensor {layout['tensor']} x data {layout['data']}, "
        + ("sequence-parallel, " if layout["sequence"] else "")
        + f"ZeRO {layout['zero_stage']}, {layout['accumulation']} micro-batches of {layout['micro_batch']}, "
        f"{layout['precision']}, {layout['execution']}",
        f"model FLOPs   {facts['flops_per_step']:.4g} a step, {facts['total_flops']:.4g} in all, "
        f"{facts['fewer_flops_than_dense']:.2f} times fewer than dense; linear layers carry "
        f"{facts['linears_share']:.0%} of the dense model's",
        f"traffic       {bytes_text(sent['tensor_sent'])} tensor-parallel and {bytes_text(sent['data_sent'])} "
        "data-parallel, sent per rank and step",
        "",
        text_table(
            (f"memory per rank ({'GPU' if facts['memory_device'] == 'cuda' else 'CPU'})", "bytes", ""),
            [(part, f"{count:,}", bytes_text(count)) for part, count in facts["memory_bytes"].items() if count],
        ),
    ]
    return "\n".join(lines)
