"""The model card (README) of an exported model: origin, architecture, sparsity and training data."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from spdf_dist import __version__
from spdf_dist.checkpoint.manifest import Manifest
from spdf_dist.checkpoint.read import Checkpoint

KINDS = {
    "pretrain": "pre-trained",
    "finetune": "fine-tuned",
    "densified": "pre-trained sparse and made dense",
    "imported": "imported from Hugging Face",
}


def model_card(checkpoint: Checkpoint, license_name: str | None) -> str:
    """The card as Markdown with front matter for model hubs. ``license_name`` is an identifier, as ``apache-2.0``."""
    manifest, model = checkpoint.manifest, checkpoint.model
    config = yaml.safe_load(checkpoint.config_yaml) or {}
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["sparsity", "spdf"]}
    if license_name is not None:
        head["license"] = license_name
    kept = sum(mask.kept for mask in manifest.masks.values())
    entries = sum(mask.shape[0] * mask.shape[1] for mask in manifest.masks.values())
    summary = {
        "Origin": f"{KINDS.get(manifest.kind, manifest.kind)}, step {manifest.step}",
        "Architecture": (
            f"{model.family}, {model.num_layers} layers, width {model.hidden_size}, {model.num_attention_heads} heads, "
            f"context {model.seq_length}, vocabulary {model.vocab_size}"
        ),
        "Sparsity": sparsity_text(manifest, kept, entries),
        "Masks, SHA-256": masks_digest(manifest) if manifest.masks else None,
        "Tokens": f"{manifest.consumed_tokens:,}" if manifest.consumed_tokens else None,
        "Training FLOPs": f"{manifest.state['total_flops']:.4g}" if manifest.state.get("total_flops") else None,
        "Data": data_text(config),
        "Checkpoint, SHA-256": manifest.sha256,
        "License": license_name or "not stated",
    }
    rows = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in summary.items() if value)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# A GPT trained with SPDF\n\n"
        "Sparse pre-training and dense fine-tuning ([Thangarasa et al., 2023](https://arxiv.org/abs/2303.10464)). "
        "Pruned weights are stored as zeros.\n\n"
        f"| | |\n|---|---|\n{rows}\n\nWritten by spdf {__version__}.\n"
    )


def sparsity_text(manifest: Manifest, kept: int, entries: int) -> str:
    """The share of the maskable weights that is pruned, or was pruned in pre-training, as text."""
    if not entries:
        return "none: all weights are dense"
    share = f"{1 - kept / entries:.4%} of {entries:,} weights in {len(manifest.masks)} matrices"
    sparse = any(tensor.sparse for tensor in manifest.tensors.values())
    pattern = f", pattern {manifest.sparsity.pattern}" if manifest.sparsity else ""
    return f"{share}{pattern}" if sparse else f"dense now; pre-training pruned {share}"


def masks_digest(manifest: Manifest) -> str:
    """One SHA-256 of all masks: over one line per mask with its name and digest, in the order of the names."""
    lines = "".join(f"{name} {mask.sha256}\n" for name, mask in sorted(manifest.masks.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def data_text(config: dict[str, Any]) -> str | None:
    """The training data in the run's config, as text; None if it has none."""
    data, task = config.get("data"), config.get("finetune")
    if isinstance(task, dict) and task.get("task"):
        return f"task {task['task']}: {task.get('train', '')}"
    if isinstance(data, dict) and data.get("train"):
        entries = [entry if isinstance(entry, dict) else {"path": entry} for entry in data["train"]]
        return ", ".join(f"{entry['path']} (weight {json.dumps(entry.get('weight', 1.0))})" for entry in entries)
    return None
