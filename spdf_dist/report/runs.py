"""Reads a run folder: its config, its curves, and the records beside them.

The files are ``config.yaml``, ``metrics.jsonl`` and, if present, ``execution.json``, ``finetune.json``,
``lineage.json`` and ``changes.jsonl``.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from spdf_dist.accounting.parameters import linear_parameters, total_parameters
from spdf_dist.config.budget import total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import config_from_tree, flatten, to_tree
from spdf_dist.config.schema import FinetuneConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.config.yaml_reader import read_yaml_file

SEEDS = ("seed", "sparsity.seed")
"""Config keys of seeds. Runs that differ only in them are repetitions of one variant."""
NO_SETTINGS = ("run_dir", "checkpoint.", "validation.", "finetune.checkpoint", *SEEDS)
"""Config keys and prefixes of keys that do not identify a variant: they do not change the computation, or are seeds."""


@dataclass
class Run:
    """A pre-training or fine-tuning run. Lists have one entry per training step, except ``validation``, ``lineage``."""

    path: Path
    tree: dict[str, Any]
    """The resolved config."""
    step: list[int] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    """Target tokens consumed, cumulative."""
    seconds: list[float] = field(default_factory=list)
    """Time in training steps, cumulative, without validation and saving."""
    loss: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    """Model FLOPs spent, cumulative."""
    tokens_per_s: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss) of each validation, in nats per token."""
    execution: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    """The record of fine-tuning: reactivated weights and their norm, best validation loss, epochs."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """The origin of a fine-tuning run (see ``spdf_dist.checkpoint.lineage``)."""
    synthetic: bool = False
    """Whether the run's record says that it trained on synthetic data."""
    skipped: int = 0
    changes: list[tuple[int, str, str]] = field(default_factory=list)
    """What ``--change`` and ``--rewind`` changed: (last saved step before, time, change)."""
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
        return "finetune" in self.tree

    @property
    def task(self) -> str:
        """The task of fine-tuning; empty for pre-training."""
        return str((self.tree.get("finetune") or {}).get("task") or "")

    @property
    def keep_mask(self) -> bool:
        """Whether fine-tuning kept the mask, as a control."""
        return bool((self.tree.get("finetune") or {}).get("keep_mask"))

    @property
    def pretraining(self) -> Run | None:
        """The run itself if it pre-trains, else its parent."""
        return self.parent if self.is_finetuning else self

    @cached_property
    def config(self) -> PretrainConfig:
        """The typed config of a pre-training run."""
        return config_from_tree(PretrainConfig, self.tree)

    @property
    def model(self) -> ModelConfig | None:
        """The architecture; None for a fine-tuning run with an unknown parent."""
        return self.pretraining.config.model if self.pretraining else None

    @property
    def sparsity(self) -> SparsityConfig | None:
        """The sparsity of pre-training; None for a fine-tuning run with an unknown parent."""
        return self.pretraining.config.sparsity if self.pretraining else None

    @property
    def seed(self) -> int:
        """Seed of this run."""
        return int(self.tree.get("seed", 0))

    @property
    def seeds(self) -> tuple[Any, ...]:
        """All seeds of this run and of its parent. Repetitions of a variant differ in them."""
        flat = flatten(self.tree)
        return (*(flat.get(key) for key in SEEDS), *(self.parent.seeds if self.parent else ()))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved config, with defaults, without seeds, paths and selected keys."""
        try:
            typed = config_from_tree(FinetuneConfig, self.tree) if self.is_finetuning else self.config
            flat = flatten(to_tree(typed))
        except (UserError, TypeError, ValueError):
            flat = flatten(self.tree)
        keys = [key for key in flat if not key.startswith(NO_SETTINGS) and key not in self.selected]
        return {key: flat[key] for key in sorted(keys, key=lambda key: key.startswith("parallel."))}

    @property
    def untrained(self) -> bool:
        """Whether the model was not pre-trained. This baseline shows the effect of fine-tuning by itself."""
        return self.pretraining is not None and self.pretraining.config.training.train_tokens == 0

    @property
    def unfinished(self) -> str:
        """The progress of an unfinished pre-training run, as text; empty for any other run."""
        if self.is_finetuning:
            return ""
        planned, here = total_steps(self.config), self.step[-1] if self.step else 0
        return f"unfinished: {here:,} of {planned:,} steps" if here < planned else ""

    @property
    def whole(self) -> bool:
        """Whether the run is finished. A fine-tuning run, which may stop early, then has a record."""
        return bool(self.finetune) if self.is_finetuning else not self.unfinished

    @property
    def final_validation(self) -> float | None:
        """The last validation loss, nats per token."""
        return self.validation[-1][1] if self.validation else None

    @property
    def best_validation(self) -> float | None:
        """The lowest validation loss, nats per token."""
        finite = [loss for _, loss in self.validation if math.isfinite(loss)]
        return min(finite, default=self.best_loss)

    @property
    def median_speed(self) -> float | None:
        """Median tokens/s, without the first tenth of the steps (warm-up of caches and kernels); None without steps."""
        speeds = self.tokens_per_s[len(self.tokens_per_s) // 10 :]
        return median(speeds) if speeds else None

    @cached_property
    def checkpoint_digests(self) -> set[str]:
        """sha256 (hex) of the manifests of the checkpoints in the run folder."""
        manifests = self.path.glob("checkpoints/*/manifest.json")
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests}

    def at_step(self, step: int, column: list[float]) -> float | None:
        """The value of a cumulative column after ``step``; 0 before the first step, None for an empty column."""
        if step == 0 or not column:
            return 0.0 if step == 0 else None
        return column[min(bisect_left(self.step, step), len(column) - 1)]

    def size(self) -> str:
        """The number of parameters as text, such as 10.4M; '?' when unknown."""
        return short_count(total_parameters(self.model)) if self.model else "?"

    def title(self) -> str:
        """The variant, with a remark for a fine-tuning run that kept the mask."""
        return self.variant + (", fine-tuned sparse" if self.keep_mask else "")


def describe_sparsity(sparsity: SparsityConfig) -> str:
    """A short text of a sparsity: 'dense', '75% sparse', '75% block:16'."""
    if sparsity.level == 0:
        return "dense"
    pattern = "sparse" if sparsity.pattern == "unstructured" else sparsity.pattern
    return f"{sparsity.level * 100:g}% {pattern}"


def short_count(count: float) -> str:
    """A count as short text: 125226240 as 125M."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.3g}"


def kept_linear_weights(run: Run) -> int | None:
    """Number of non-zeros in the prunable matrices of the pre-trained model; None when the model is unknown."""
    if run.model is None:
        return None
    return linear_parameters(run.model, run.sparsity)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError when the file is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def read_metrics(run: Run, path: Path) -> None:
    """Fill the curves from ``metrics.jsonl``. A truncated last line, left by a killed run, is ignored.

    Raises UserError for any other line that the training loop did not write.
    """
    lines = path.read_bytes().splitlines()
    seconds = 0.0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:  # includes invalid UTF-8
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: not JSON; the file was changed by something else") from None
        try:
            seconds += read_line(run, line, seconds)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path}, line {number}: not a line of training or validation") from None


def read_line(run: Run, line: dict[str, Any], seconds: float) -> float:
    """Add one line, and return the seconds of its step. ``seconds`` is the cumulative time before it."""
    if "val_loss" in line:
        run.validation.append((int(line["step"]), number_or_nan(line["val_loss"])))
    if "loss" not in line:
        return 0.0
    took = float(line.get("step_ms") or 0) / 1e3
    row = (
        int(line["step"]),
        float(line.get("consumed_tokens") or 0),
        seconds + took,
        number_or_nan(line["loss"]),
        float(line.get("total_flops") or 0),
        float(line.get("tokens_per_s") or 0),
    )
    columns: tuple[list[Any], ...] = (run.step, run.tokens, run.seconds, run.loss, run.flops, run.tokens_per_s)
    for column, value in zip(columns, row, strict=True):
        column.append(value)
    run.skipped = int(line.get("skipped_iterations") or 0)
    return took


def number_or_nan(value: float | None) -> float:
    """A loss from JSON, in which null stands for a value that is not finite."""
    return math.nan if value is None else float(value)


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is a run folder. A run without steps has checkpoints but no metrics."""
    return (folder / "config.yaml").is_file() and (
        (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    )


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError when it is damaged."""
    path = folder / "config.yaml"
    tree = read_yaml_file(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys and values")
    run = Run(folder, tree)
    if (folder / "metrics.jsonl").is_file():
        read_metrics(run, folder / "metrics.jsonl")
    for name in ("execution", "finetune"):
        if (folder / f"{name}.json").is_file():
            setattr(run, name, read_json(folder / f"{name}.json"))
    if (folder / "lineage.json").is_file():
        recorded = read_json(folder / "lineage.json")
        run.lineage, run.synthetic = list(recorded.get("lineage") or []), recorded.get("synthetic") is True
    run.changes = read_changes(folder / "changes.jsonl")
    check(run)
    return run


def read_changes(path: Path) -> list[tuple[int, str, str]]:
    """The changes of a run, oldest first; empty without the file. Raises UserError if it is damaged."""
    if not path.is_file():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(int(r["after_step"]), str(r["time"]), str(change)) for r in records for change in r["changes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a record of changes: {error}") from None


def check(run: Run) -> None:
    """Raise UserError when the config or a file beside it does not have the format of this version."""
    try:
        run.seed  # noqa: B018
        if not run.is_finetuning:
            run.config  # noqa: B018
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{run.path / 'config.yaml'}: {' '.join(str(error).split())}") from None
    for key in ("finetune", "training", "parallel"):
        if not isinstance(run.tree.get(key) or {}, dict):
            raise UserError(f"{run.path / 'config.yaml'}: {key}: expected keys and values")
    layers = run.execution.get("layers") or {}
    if not (isinstance(layers, dict) and all(isinstance(name, str) for name in layers.values())):
        raise UserError(f"{run.path / 'execution.json'}: layers: expected an execution for each layer")
    for key in ("best_val_loss", "reactivated", "reactivated_norm"):
        if not isinstance(run.finetune.get(key) or 0, int | float):
            raise UserError(f"{run.path / 'finetune.json'}: {key}: expected a number")
