"""Reads a run folder: its config, its curves, and the records beside them.

The files are ``config.yaml``, ``metrics.jsonl`` and, if present, ``execution.json``, ``finetune.json``,
``lineage.json`` and ``changes.jsonl``.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.base.numbers import short_count
from spdf_dist.config.budget import total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import build, config_from_tree, flatten, to_tree
from spdf_dist.config.schema import AnyConfig, FinetuneConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.config.yaml_reader import read_yaml_file
from spdf_dist.training.run_folder import RunFolder

SEEDS = ("seed", "sparsity.seed")
"""Config keys of seeds. Runs that differ only in them are repetitions of one variant."""
NO_SETTINGS = ("run_dir", "checkpoint.", "validation.", "finetune.checkpoint", *SEEDS)
"""Config keys and prefixes of keys that do not identify a variant: they do not change the computation, or are seeds."""
CURVES = {
    "tokens": "consumed_tokens",
    "seconds": "step_ms",
    "flops": "total_flops",
    "loss": "loss",
    "tokens_per_s": "tokens_per_s",
}
"""Columns of ``Run.curve`` after ``step``, and their keys in ``metrics.jsonl``."""


@dataclass(eq=False)
class Run:
    """A pre-training or fine-tuning run."""

    path: Path
    config: AnyConfig
    curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["step", *CURVES], dtype=float))
    """One row per training step. Cumulative: ``tokens`` (target tokens), ``flops`` (model FLOPs) and ``seconds`` (in
    training steps, without validation and saving). Of the step: ``loss`` and ``tokens_per_s``."""
    validation: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    """The loss of each validation in nats per token, by step."""
    skipped: int = 0
    """Number of steps that the loss limit skipped."""
    execution: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    """The record of fine-tuning: reactivated weights and their norm, best validation loss, epochs."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """The origin of a fine-tuning run (see ``spdf_dist.checkpoint.lineage``)."""
    synthetic: bool = False
    """Whether the run's record says that it trained on synthetic data."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What ``--change`` and ``--rewind`` changed (see ``RunFolder.change_history``)."""
    parent: Run | None = None
    """The pre-training run from which a fine-tuning run started; None where it is not recorded."""
    label: str = ""
    """The name that the user or a workflow gave the run."""
    variant: str = ""
    """Name in tables and figures. Runs of the same variant differ only in their seeds (see variants.py)."""
    rejected: bool = False
    """Whether the run is a rejected candidate of a `select` job."""
    selected: frozenset[str] = frozenset()
    """Config keys that a `select` job chose by validation. Repetitions with other seeds may differ in them."""
    best_loss: float | None = None
    """The best validation loss in nats per token, where only the record of a result has it."""

    @cached_property
    def place(self) -> Path:
        """The folder of the run, with links resolved."""
        return self.path.resolve()

    @property
    def is_finetuning(self) -> bool:
        """Whether this run fine-tunes."""
        return isinstance(self.config, FinetuneConfig)

    @property
    def task(self) -> str:
        """The task of fine-tuning; empty for pre-training."""
        return self.config.finetune.task if isinstance(self.config, FinetuneConfig) else ""

    @property
    def keep_mask(self) -> bool:
        """Whether fine-tuning kept the mask, as a control."""
        return isinstance(self.config, FinetuneConfig) and self.config.finetune.keep_mask

    @property
    def pretraining(self) -> Run | None:
        """The run itself if it pre-trains, else its parent."""
        return self.parent if self.is_finetuning else self

    @property
    def origin(self) -> PretrainConfig | None:
        """The config of pre-training; None for a fine-tuning run with an unknown parent."""
        config = self.pretraining.config if self.pretraining else None
        return config if isinstance(config, PretrainConfig) else None

    @property
    def model(self) -> ModelConfig | None:
        """The architecture; None for a fine-tuning run with an unknown parent."""
        return self.origin.model if self.origin else None

    @property
    def sparsity(self) -> SparsityConfig | None:
        """The sparsity of pre-training; None for a fine-tuning run with an unknown parent."""
        return self.origin.sparsity if self.origin else None

    @property
    def seeds(self) -> tuple[Any, ...]:
        """All seeds of this run and of its parent. Repetitions of a variant differ in them."""
        flat = flatten(to_tree(self.config))
        return (*(flat.get(key) for key in SEEDS), *(self.parent.seeds if self.parent else ()))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved config, with defaults, without seeds, paths and selected keys."""
        flat = flatten(to_tree(self.config))
        keys = [key for key in flat if not key.startswith(NO_SETTINGS) and key not in self.selected]
        return {key: flat[key] for key in sorted(keys, key=lambda key: key.startswith("parallel."))}

    @property
    def untrained(self) -> bool:
        """Whether the model was not pre-trained. This baseline shows the effect of fine-tuning by itself."""
        return self.origin is not None and self.origin.training.train_tokens == 0

    @property
    def is_dense(self) -> bool:
        """Whether this run is a dense baseline, or was fine-tuned from one."""
        return self.sparsity is not None and self.sparsity.level == 0 and not self.untrained

    @property
    def steps(self) -> int:
        """The last training step; 0 without any."""
        return int(self.last("step"))

    @property
    def unfinished(self) -> str:
        """The progress of an unfinished pre-training run, as text; empty for any other run."""
        planned = total_steps(self.config) if isinstance(self.config, PretrainConfig) else 0
        return f"unfinished: {self.steps:,} of {planned:,} steps" if self.steps < planned else ""

    @property
    def finished(self) -> bool:
        """Whether the run is finished. A fine-tuning run, which may stop early, then has a record."""
        return bool(self.finetune) if self.is_finetuning else not self.unfinished

    @property
    def final_validation(self) -> float | None:
        """The last validation loss, nats per token."""
        return float(self.validation.iloc[-1]) if len(self.validation) else None

    @property
    def best_validation(self) -> float | None:
        """The lowest validation loss, nats per token."""
        finite = self.validation[np.isfinite(self.validation)]
        return float(finite.min()) if len(finite) else self.best_loss

    @property
    def median_speed(self) -> float | None:
        """Median tokens/s, without the first tenth of the steps (warm-up of caches and kernels); None without steps."""
        speeds = self.curve.tokens_per_s[len(self.curve) // 10 :]
        return float(speeds.median()) if len(speeds) else None

    @cached_property
    def checkpoint_digests(self) -> set[str]:
        """sha256 (hex) of the manifests of the checkpoints in the run folder."""
        manifests = self.path.glob("checkpoints/*/manifest.json")
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests}

    def last(self, column: str) -> float:
        """A column of the curve after the last step; 0 without steps."""
        return float(self.curve[column].iloc[-1]) if len(self.curve) else 0.0

    def at_validations(self, column: str) -> pd.Series:
        """A cumulative column of the curve at each validation; 0 before the first step."""
        steps, values = (np.append(0, self.curve[name]) for name in ("step", column))
        place = np.searchsorted(steps, self.validation.index).clip(max=len(steps) - 1)
        return pd.Series(values[place])

    def size(self) -> str:
        """The number of parameters as text, such as 10.4M; '?' when unknown."""
        return short_count(total_parameters(self.model)) if self.model else "?"

    def title(self) -> str:
        """The variant, with a remark for a fine-tuning run that kept the mask."""
        return self.variant + (", fine-tuned sparse" if self.keep_mask else "")


def read_metrics(path: Path) -> tuple[pd.DataFrame, pd.Series, int]:
    """``Run.curve``, ``Run.validation`` and ``Run.skipped`` from ``metrics.jsonl``.

    A truncated last line, left by a killed run, is ignored. Raises UserError for any other line that the training loop
    did not write.
    """
    rows, validation, skipped = [], [], 0
    lines = path.read_bytes().splitlines()
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text or b"{}")
            if "val_loss" in line:
                validation.append((int(line["step"]), number_or_nan(line["val_loss"])))
            if "loss" in line:
                row = {name: float(line.get(key) or 0) for name, key in CURVES.items()}
                rows.append({"step": int(line["step"]), **row, "loss": number_or_nan(line["loss"])})
                skipped = int(line.get("skipped_iterations") or 0)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
                break
            raise UserError(f"{path}, line {number}: not a line of training or validation") from None
    curve = pd.DataFrame(rows, columns=["step", *CURVES], dtype=float)
    curve["seconds"] = (curve.seconds / 1e3).cumsum()
    steps, losses = zip(*validation, strict=True) if validation else ((), ())
    return curve, pd.Series(losses, steps, dtype=float), skipped


def number_or_nan(value: float | None) -> float:
    """A loss from JSON, in which null stands for a value that is not finite."""
    return math.nan if value is None else float(value)


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is a run folder. A run without steps has checkpoints but no metrics."""
    files = RunFolder(folder)
    return files.config.is_file() and (files.metrics.is_file() or files.checkpoints.is_dir())


def typed_config(tree: dict[str, Any]) -> AnyConfig:
    """The config of a run from its resolved ``config.yaml``. Its task may be unknown here. Raises UserError."""
    if "finetune" in tree:
        config: FinetuneConfig = build(FinetuneConfig, tree, "")
        return config
    return config_from_tree(PretrainConfig, tree)


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError when it is damaged."""
    files = RunFolder(folder)
    tree = read_yaml_file(files.config)
    if not isinstance(tree, dict):
        raise UserError(f"{files.config}: expected keys and values")
    try:
        run = Run(folder, typed_config(tree))
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{files.config}: {' '.join(str(error).split())}") from None
    run.changes = files.change_history()
    if files.metrics.is_file():
        run.curve, run.validation, run.skipped = read_metrics(files.metrics)
    run.execution, run.finetune = (files.read_json(f"{name}.json") or {} for name in ("execution", "finetune"))
    origin = files.read_json("lineage.json") or {}
    run.lineage, run.synthetic = list(origin.get("lineage") or []), origin.get("synthetic") is True
    layers = run.execution.get("layers") or {}
    if not (isinstance(layers, dict) and all(isinstance(name, str) for name in layers.values())):
        raise UserError(f"{files.execution}: layers: expected an execution for each layer")
    for key in ("best_val_loss", "reactivated", "reactivated_norm"):
        if not isinstance(run.finetune.get(key) or 0, int | float):
            raise UserError(f"{folder / 'finetune.json'}: {key}: expected a number")
    return run
