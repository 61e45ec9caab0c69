"""A run's folder: its config, its metrics, its lock. Rank 0 alone writes through this module.

``config.yaml`` (resolved), ``metrics.jsonl`` (a line a step), ``tensorboard/``, ``checkpoints/step_N/``, ``logs/``,
``report/``, ``tokenizer/`` (copied at the start: what it was copied from may go while the run saves checkpoints),
``execution.json`` (execution of each sparse layer), ``result.json`` (once the run is complete).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from spdf_dist.base import atomic_files
from spdf_dist.base.file_locks import try_lock
from spdf_dist.checkpoint.find import ASIDE
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.load import build, run_differences, to_tree, to_yaml
from spdf_dist.config.schema import AnyConfig
from spdf_dist.config.yaml_reader import read_yaml_file
from spdf_dist.data.tokenizer import Tokenizer


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError inside, as on a full disk, becomes an SpdfError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise SpdfError(f"{path} cannot be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises SpdfError when the disk does not take it."""
    with writing(path):
        atomic_files.write_text(path, text)


def is_leftover(path: Path) -> bool:
    """Whether an entry of a folder without a config is what a start leaves that was broken off before it wrote one."""
    if path.name in ("checkpoints", "tensorboard"):
        return path.is_dir() and not any(path.iterdir())
    return path.name in ("logs", ".lock", ".lock.holder") or atomic_files.is_temporary(path)


class RunFolder:
    """One run on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.jsonl"
        self.tokenizer = self.path / "tokenizer"
        self.execution = self.path / "execution.json"
        self.result = self.path / "result.json"
        self.lock = self.path / ".lock"
        self._lock: IO[str] | None = None

    def open(self, config: AnyConfig) -> None:
        """Create the folder, or check that it holds the same run. Raises UserError for another run or a second process.

        A run that logged and saved nothing gives way to another. The lock goes with the process, however that ends.
        """
        self.check(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = try_lock(self.lock)
        except OSError as error:
            raise UserError(f"run_dir: cannot write to {self.path}: {error.strerror}") from None
        if descriptor is None:
            raise UserError(f"run_dir: another process is running in {self.path}")
        self._lock = os.fdopen(descriptor, "w")
        self.check(config)  # again: another process may have come and gone before the lock
        with writing(self.path):
            atomic_files.remove_temporaries(self.path)
            if self.differences(config):
                self.execution.unlink(missing_ok=True)
                for folder in (self.tensorboard, self.tokenizer):
                    shutil.rmtree(folder, ignore_errors=True)
            # First of all: without it a folder is nobody's run, and a kill may come at any line.
            write_text(self.config, to_yaml(config))
            for folder in (self.checkpoints, self.logs, self.tensorboard):
                folder.mkdir(exist_ok=True)

    def check(self, config: AnyConfig) -> None:
        """Raise UserError when the folder holds something else than this run; writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run_dir: {self.path} is no folder")
        differences = self.differences(config)
        if differences and not self.is_unused():
            shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if differences[3:] else "")
            raise UserError(f"run_dir: {self.path} holds another run ({shown}); choose another run_dir")
        if not self.config.exists() and self.path.exists() and not all(map(is_leftover, self.path.iterdir())):
            raise UserError(f"run_dir: {self.path} is not empty and holds no run; choose another run_dir")

    def differences(self, config: AnyConfig) -> list[str]:
        """What makes ``config`` another run than the folder's, as ``key: old -> new``; none in a folder without one."""
        if not self.config.exists():
            return []
        try:
            old = read_yaml_file(self.config)
        except UserError as error:
            raise UserError(f"{self.config} cannot be read: {str(error).removeprefix(f'{self.config}: ')}") from None
        with contextlib.suppress(UserError):  # a key that the older program lacked has its default
            old = to_tree(build(type(config), old, ""))
        return run_differences(old if isinstance(old, dict) else {}, to_tree(config))

    def is_unused(self) -> bool:
        """Whether a run began here and nothing is lost with it: no checkpoint, whole or not, no metrics, no result."""
        saved = self.checkpoints.is_dir() and any(not p.name.endswith(ASIDE) for p in self.checkpoints.iterdir())
        logged = self.metrics.exists() and self.metrics.stat().st_size > 0
        # Without a lock no run began: the config may be a person's own.
        return self.lock.exists() and not (saved or logged or self.result.exists())

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Copy a tokenizer into the folder, for the checkpoints."""
        with writing(self.tokenizer):
            tokenizer.save(self.tokenizer)

    def cut_metrics(self, step: int, *, validated: bool = True) -> None:
        """Drop metrics lines past ``step``, its validation line when that will be made again, and a line cut short.

        Raises UserError for a line that is JSON and no metrics line: whose it is must be a person's decision.
        """
        if not self.metrics.exists():
            return
        kept = []
        with self.metrics.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                    raise UserError(f"{self.metrics}: line {number} is no metrics line: {line[:60]!r}; delete the line")
                past = record["step"] > step or (record["step"] == step and "val_loss" in record and not validated)
                if line.endswith("\n") and not past:
                    kept.append(line)
        write_text(self.metrics, "".join(kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
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
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}; delete it to have it made again") from None
        return content if isinstance(content, dict) else None
