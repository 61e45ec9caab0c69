"""Memory of a checkpoint's sparse weights in training, compared with dense weights, for ``spdf inspect``."""

from __future__ import annotations

import math
from typing import Any

from spdf_dist.accounting.text_table import text_table
from spdf_dist.base.progress_bar import ProgressBar
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.sparsity.masks import logical_weights


def add_model_state(summary: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Add ``state`` to the result of ``inspect``, and ``state`` and ``gpu`` to each of its sparse weights.

    ``state`` holds the bytes of parameters, gradients, moments, indices and generated code on each path of the kernels
    (`compact`, `generated`), or the reason why this machine lacks the path, beside the bytes of dense weights. The
    total also holds the seconds that preparing the patterns took. Without torch, ``state`` says that torch is missing.
    """
    sparse = [name for name in logical_weights(checkpoint.model) if checkpoint.manifest.tensors[name].sparse]
    if not sparse:
        summary["state"] = {"patterns": 0, "dense_bytes": 0}
        return
    try:
        import torch
        from spdf_kernels import SparsityPattern
        from spdf_kernels.state import BYTES_OF_ENTRY, model_state, summary_of, total_summary
    except ImportError as error:
        summary["state"] = {"missing": f"needs torch ({error})"}
        return
    by_name = {}
    for name in ProgressBar(sparse, desc="patterns", unit="pattern", leave=False):
        by_name[name] = model_state(torch.from_numpy(checkpoint.masks[name].copy()))
    on_gpu: dict[str, int] = {}
    for weight in summary["weights"]:
        if weight["name"] in by_name:
            weight["gpu"] = gpu_path(
                SparsityPattern.from_mask(torch.from_numpy(checkpoint.masks[weight["name"]].copy()))
            )
            on_gpu[weight["gpu"]] = on_gpu.get(weight["gpu"], 0) + 1
            weight["state"] = {"dense_bytes": BYTES_OF_ENTRY * math.prod(weight["shape"])}
            weight["state"] |= {path: summary_of(state) for path, state in by_name[weight["name"]].items()}
    summary["state"] = {
        "patterns": len(sparse),
        "dense_bytes": sum(weight["state"]["dense_bytes"] for weight in summary["weights"] if "state" in weight),
        "gpu": on_gpu,
        **total_summary(by_name.values()),
    }


def gpu_path(pattern: Any) -> str:
    """How a GPU multiplies by this mask in bf16, without tensor parallelism.

    `blocks of N`: pruned blocks of that size are skipped; `expanded`: the weight is expanded to dense.
    """
    from spdf_kernels.triton.blocks import blocks_of

    blocks = blocks_of(pattern)
    return "expanded" if blocks is None else f"blocks of {blocks.size}"


def state_table(summary: dict[str, Any]) -> str:
    """What `add_model_state` added, as text; empty for a dense checkpoint."""
    total = summary["state"]
    if "missing" in total:
        return f"model state: {total['missing']}"
    if not total["patterns"]:
        return ""
    lines = ["model state in training: parameters, gradients, moments, indices and generated code, bytes"]
    paths = []
    lines.append(f"on a GPU in bf16: {', '.join(f'{path} in {n} weights' for path, n in total['gpu'].items())}")
    for path in [key for key, value in total.items() if isinstance(value, dict) and key != "gpu"]:
        if "missing" in total[path]:
            lines.append(f"{path}: {total[path]['missing']}")
            continue
        paths.append(path)
        lines.append(
            f"{path}: {', '.join(total[path]['backends'])}; {total['patterns']} patterns prepared in "
            f"{total[path]['prepare_s']:.2f} s"
        )
    rows = []
    for name, state in [(w["name"], w["state"]) for w in summary["weights"] if "state" in w] + [("all", total)]:
        row = [name, f"{state['dense_bytes']:,}"]
        for path in paths:
            row += [f"{state[path]['bytes']:,}", f"{state[path]['of_dense']:.3f}"]
        rows.append(row)
    head = ["weight", "dense"] + [text for path in paths for text in (path, "of dense")]
    return "\n".join([*lines, "", text_table(head, rows)])
