"""The lineage of a checkpoint: it and the checkpoints that it was made from, newest first.

Each entry holds ``kind`` (pretrain, finetune, densified, ...), ``step``, ``manifest_sha256`` (the checkpoint's digest),
``path`` (of the checkpoint at that time), ``config`` (the run's resolved config), ``best_val_loss`` and ``synthetic``
(whether the training data were generated). Unknown or missing values are null.
"""

from __future__ import annotations

from typing import Any

import yaml

from spdf_dist.checkpoint.read import Checkpoint

RUN_KINDS = ("pretrain", "finetune")


def lineage(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The entries of ``checkpoint`` and of its ancestors, down to the first pre-training run."""
    manifest = checkpoint.manifest
    source = manifest.source or {}
    config = yaml.safe_load(checkpoint.config_yaml) or None
    is_run = manifest.kind in RUN_KINDS
    entry = {
        "kind": manifest.kind,
        "step": checkpoint.step,
        "manifest_sha256": manifest.sha256,
        "path": str(checkpoint.path.resolve()),
        "config": config if is_run else None,
        "best_val_loss": manifest.state.get("best_val_loss"),
        "synthetic": source.get("synthetic"),
    }
    older = list(source.get("lineage") or [])
    if manifest.kind == "densified" and not older:  # an older format without lineage; its config is that of its source
        older = [
            {
                "kind": source.get("kind"),
                "step": source.get("step"),
                "manifest_sha256": source.get("manifest_sha256"),
                "path": None,
                "config": config,
                "best_val_loss": None,
                "synthetic": None,
            }
        ]
    return [entry, *older]
