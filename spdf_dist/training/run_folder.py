"""A run's folder: its config, its metrics, its lock. Rank 0 alone writes through this module.

``config.yaml`` (resolved), ``metrics.jsonl`` (a line a step), ``tensorboard/``, ``checkpoints/step_N/``, ``logs/``,
``report/``, ``execution.json`` (execution of each sparse layer), ``result.json`` (once the run is complete).
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

import yaml

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import run_differences, to_tree, to_yaml
from spdf_dist.config.schema import AnyConfig


def write_text(path: Path, text: str) -> None:
    """Write a file aside, force it to the disk and rename it: readers see the old or the new one, never half."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


class RunFolder:
    """One run on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.jsonl"
        self.execution = self.path / "execution.json"
        self.result = self.path / "result.json"
        self._lock: IO[str] | None = None

    def open(self, config: AnyConfig) -> None:
        """Create the folder, or check that it holds the same run. Raises UserError for another run or a second process.

        The lock goes with the process, however that ends.
        """
        self.check(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"run_dir: cannot write to {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"run_dir: another process is running in {self.path}") from None
        for folder in (self.checkpoints, self.logs, self.tensorboard):
            folder.mkdir(exist_ok=True)
        write_text(self.path / "config.yaml", to_yaml(config))

    def check(self, config: AnyConfig) -> None:
        """Raise UserError when the folder holds something else than this run; writes nothing."""
        known = self.path / "config.yaml"
        if known.exists():
            try:
                old = yaml.safe_load(known.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError) as error:
                raise UserError(f"{known} cannot be read: {error}") from None
            differences = run_differences(old if isinstance(old, dict) else {}, to_tree(config))
            if differences:
                shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if differences[3:] else "")
                raise UserError(f"run_dir: {self.path} holds another run ({shown}); choose another run_dir")
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"run_dir: {self.path} is no folder")
        elif self.path.exists() and any(p.name not in ("logs", ".lock") for p in self.path.iterdir()):
            raise UserError(f"run_dir: {self.path} is not empty and holds no run; choose another run_dir")

    def cut_metrics(self, step: int, *, validated: bool = True) -> None:
        """Drop metrics lines past ``step``, its validation line when that will be made again, and a line cut short."""
        if not self.metrics.exists():
            return
        kept = []
        with self.metrics.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                past = record["step"] > step or (record["step"] == step and "val_loss" in record and not validated)
                if line.endswith("\n") and not past:
                    kept.append(line)
        write_text(self.metrics, "".join(kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """A small JSON file in the run folder, whole or not at all."""
        write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What ``write_json`` wrote, or None."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}; delete it to have it made again") from None
        return content if isinstance(content, dict) else None
