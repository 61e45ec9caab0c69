"""A run's folder: its config, its metrics, its lock.

Only rank 0 writes through this module. The entries are:

    config.yaml        the resolved config
    metrics.jsonl      one line per step and one per validation
    tensorboard/       the same numbers for TensorBoard
    checkpoints/       step_N/, one per checkpoint
    tokenizer/         a copy, because the original may be deleted while the run saves checkpoints
    logs/  report/     output of the other ranks; reports
    execution.json     execution of each sparse linear
    data.json          digests of the data and other inputs
    changes.jsonl      what --change and --rewind changed
    result.json        written when the run is complete
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spdf_dist.base import atomic_files
from spdf_dist.base.file_locks import release, try_lock
from spdf_dist.checkpoint.find import ASIDE, latest, remove_remains
from spdf_dist.checkpoint.manifest import read_manifest
from spdf_dist.config.errors import NoPermissionError, SpdfError, UserError
from spdf_dist.config.load import FIXED, build, is_below, run_differences, to_tree, to_yaml
from spdf_dist.config.schema import AnyConfig
from spdf_dist.config.yaml_reader import read_yaml, read_yaml_file
from spdf_dist.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from spdf_dist.checkpoint.read import Checkpoint


INPUTS = {
    "training": "the training data",
    "validation": "the validation data",
    "tokenizer": "the files of the tokenizer",
    "deepspeed": "the settings in the DeepSpeed file",
    "checkpoint": "the contents of the checkpoint to start from",
}
"""Inputs whose content is part of a run, with their names for messages."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an OSError of the block, as on a full disk, to an SpdfError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise SpdfError(f"{path} cannot be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Raises SpdfError if that fails, as on a full disk."""
    with writing(path):
        atomic_files.write_text(path, text)


def is_leftover(path: Path) -> bool:
    """Whether an interrupted start, before it wrote the config, may have left this entry of the folder."""
    if path.name in ("checkpoints", "tensorboard"):
        return path.is_dir() and not any(path.iterdir())
    return path.name in ("logs", ".lock", ".lock.holder") or atomic_files.is_temporary(path)


def listed(differences: Sequence[str]) -> str:
    """At most three of the differences, and the number of the others, as text."""
    return "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if differences[3:] else "")


def differences_from(old: Any, config: AnyConfig) -> list[str]:
    """The differences that make ``config`` another run than that of a resolved tree, as ``key: old -> new``."""
    with contextlib.suppress(UserError):  # a key that an older version did not have gets its default
        old = to_tree(build(type(config), old, ""))
    return run_differences(old if isinstance(old, dict) else {}, to_tree(config))


class RunFolder:
    """The files of one run."""

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
        self.changes = self.path / "changes.jsonl"
        self.data = self.path / "data.json"
        self.lock = self.path / ".lock"
        self._lock: IO[str] | None = None

    def open(self, config: AnyConfig, *, change: bool = False) -> None:
        """Create the folder, or check that it holds the same run, and lock it.

        ``change`` allows differences, which are recorded in ``changes.jsonl``. A run that has neither logged nor saved
        anything is replaced. The lock ends with the process, however that ends.

        Raises:
            UserError: the folder holds another run, is locked by another process or cannot be written.
        """
        self.check(config, change=change)
        self.check_permissions()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = try_lock(self.lock)
        except OSError as error:
            raise UserError(f"run_dir: cannot write to {self.path}: {error.strerror}") from None
        if descriptor is None:
            raise UserError(f"run_dir: another process is running in {self.path}")
        self._lock = os.fdopen(descriptor, "w")
        self.check(config, change=change)  # again: another process may have run here before this one had the lock
        with writing(self.path):
            atomic_files.remove_temporaries(self.path)
            differences = self.differences(config)
            if differences and not self.is_unused():
                self.record_change(differences)
                self.result.unlink(missing_ok=True)  # the changed run may have more steps
            elif differences:
                self.execution.unlink(missing_ok=True)
                for folder in (self.tensorboard, self.tokenizer):
                    shutil.rmtree(folder, ignore_errors=True)
            # Written before the folders, so that a process killed here leaves a folder that counts as this run.
            write_text(self.config, to_yaml(config))
            for folder in (self.checkpoints, self.logs, self.tensorboard):
                folder.mkdir(exist_ok=True)
            remove_remains(self.checkpoints)  # no save comes after a kill in the last one's clean-up

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            release(self._lock.fileno())
            self._lock.close()
            self._lock = None

    def check(self, config: AnyConfig, *, change: bool = False) -> None:
        """Raise UserError if the folder holds something other than this run; writes nothing.

        With ``change``, only the keys that cannot change (``FIXED``) are compared.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            nowhere = "a link to a folder that does not exist" if not self.path.exists() else "not a folder"
            raise UserError(f"run_dir: {self.path} is {nowhere}")
        differences = self.differences(config)
        if differences and not self.is_unused():
            fixed = [difference for difference in differences if is_below(difference.split(":")[0], FIXED)]
            if not change or fixed:
                shown = listed(fixed if change else differences)
                hint = "choose another run_dir"
                if not fixed:
                    hint += ", or add --change to continue it with other values"
                raise UserError(f"run_dir: {self.path} holds another run ({shown}); {hint}")
        if not self.config.exists() and self.path.exists() and not all(map(is_leftover, self.path.iterdir())):
            raise UserError(f"run_dir: {self.path} is not empty and holds no run; choose another run_dir")

    def check_permissions(self) -> None:
        """Raise NoPermissionError if the metrics or a checkpoint may not be read; writes nothing."""
        if self.metrics.exists() and not os.access(self.metrics, os.R_OK | os.W_OK):
            raise NoPermissionError(f"run_dir: {self.metrics}: permission denied")
        latest(self.checkpoints)

    def record_change(self, changes: list[str]) -> None:
        """Append to ``changes.jsonl`` what was changed, when, and after which saved step."""
        found = latest(self.checkpoints)
        record = {
            "schema_version": 1,
            "after_step": read_manifest(found).step if found else 0,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "changes": changes,
        }
        with self.changes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def change_history(self) -> list[dict[str, Any]]:
        """The records of ``record_change``, oldest first.

        ``after_step`` is the last saved step before the change, ``time`` is in ISO format, and ``changes`` are texts.
        Raises UserError if the file is damaged.
        """
        if not self.changes.exists():
            return []
        try:
            records = [json.loads(line) for line in self.changes.read_text(encoding="utf-8").splitlines()]
            return [
                {
                    "after_step": int(record["after_step"]),
                    "time": str(record["time"]),
                    "changes": list(record["changes"]),
                }
                for record in records
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.changes}: not a record of changes: {error}") from None

    def keep_data(self, digests: dict[str, list[str]], *, change: bool = False) -> None:
        """Record the digests of the run's inputs, or check that they are those the run began with.

        ``digests`` is keyed by ``INPUTS``. Inputs that an older version did not record are recorded now. Raises
        UserError if an input differs, unless ``change`` allows it.
        """
        changed = self.changed_data(digests, change=change)
        if changed:
            self.record_change([f"{name}: other content" for name in changed])
        if self.known_data() != digests:
            self.write_json(self.data.name, {"schema_version": 1, "digests": digests})

    def known_data(self) -> dict[str, list[str]]:
        """The digests that ``keep_data`` has recorded; empty before the run's first step."""
        return {} if self.is_unused() else (self.read_json(self.data.name) or {}).get("digests") or {}

    def changed_data(self, digests: dict[str, list[str]], *, change: bool = False) -> list[str]:
        """The inputs whose digests are not the recorded ones, as ``INPUTS`` describes them.

        Raises UserError if an input differs, unless ``change`` allows it.
        """
        known = self.known_data()
        changed = [name for name in digests if known.get(name, digests[name]) != digests[name]]
        names = [INPUTS[name] for name in changed]
        fixed = "checkpoint" in changed
        if fixed or (changed and not change):
            raise UserError(
                f"run_dir: {self.path} began with other data: {' and '.join(names)} have changed since (their digests "
                f"are in {self.data.name}); restore them{', or' if fixed else ','} choose another run_dir"
                f"{'' if fixed else ', or add --change'}"
            )
        return names

    def is_complete(self, config: AnyConfig) -> bool:
        """Whether the run of ``config`` is done: its result is written, and its last or best checkpoint exists."""
        result = self.read_json(self.result.name) if self.result.exists() and not self.differences(config) else None
        found = latest(self.checkpoints) if result is not None else None
        if result is None or found is None:
            return False
        return read_manifest(found).step in (result.get("steps"), result.get("best_step"))

    def last_logged_step(self) -> int:
        """The highest step in ``metrics.jsonl``; 0 if there is none."""
        steps = [0]
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, AttributeError, TypeError):
                    steps.append(int(json.loads(line).get("step", 0)))
        return max(steps)

    def differences(self, config: AnyConfig) -> list[str]:
        """The differences that make ``config`` another run than the folder's, as ``key: old -> new``.

        The list is empty if the folder has no config. Raises UserError if its config cannot be read.
        """
        if not self.config.exists():
            return []
        try:
            old = read_yaml_file(self.config)
        except UserError as error:
            raise UserError(f"{self.config} cannot be read: {str(error).removeprefix(f'{self.config}: ')}") from None
        return differences_from(old, config)

    def check_checkpoint(self, checkpoint: Checkpoint, config: AnyConfig, *, change: bool = False) -> None:
        """Check that a checkpoint was saved by this run: its config differs only by recorded changes.

        ``change`` allows and records further differences. Raises UserError.
        """
        old = read_yaml(checkpoint.config_yaml)
        recorded = {text.split(":")[0] for record in self.change_history() for text in record["changes"]}
        unknown = [text for text in differences_from(old, config) if text.split(":")[0] not in recorded] if old else []
        if unknown and not change:
            raise UserError(
                f"{checkpoint.path} is a checkpoint of another run ({listed(unknown)}): move it out of "
                f"{self.checkpoints}, or add --change to continue from it"
            )
        if unknown:
            self.record_change(unknown)

    def is_unused(self) -> bool:
        """Whether a run began here but has no checkpoint, complete or not, no metrics and no result."""
        saved = self.checkpoints.is_dir() and any(not p.name.endswith(ASIDE) for p in self.checkpoints.iterdir())
        logged = self.metrics.exists() and self.metrics.stat().st_size > 0
        # Without a lock file no run began here, and the config may be a user's own file.
        return self.lock.exists() and not (saved or logged or self.result.exists())

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Copy a tokenizer into the folder, for the checkpoints. Raises SpdfError if that fails."""
        with writing(self.tokenizer):
            tokenizer.save(self.tokenizer)

    def restore(self, config: AnyConfig, tokenizer: Tokenizer | None, digests: dict[str, list[str]]) -> list[str]:
        """Write the config, the tokenizer and the digests of the inputs again if they are missing; returns their names.

        ``tokenizer`` and ``digests`` are those of ``keep_tokenizer`` and ``keep_data``. Raises OSError and SpdfError.
        """
        missing = [path.name for path in (self.config, self.data, self.tokenizer) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        if self.config.name in missing:
            write_text(self.config, to_yaml(config))
        if self.data.name in missing:
            self.write_json(self.data.name, {"schema_version": 1, "digests": digests})
        if tokenizer is None:
            missing = [name for name in missing if name != self.tokenizer.name]
        elif self.tokenizer.name in missing:
            self.keep_tokenizer(tokenizer)
        return missing

    def cut_metrics(self, step: int, *, validated: bool = True) -> None:
        """Remove metrics lines after ``step`` and incomplete lines.

        If ``validated`` is false, the validation line of ``step`` is removed too, because it will be written again.
        Raises UserError for JSON that is not a metrics record; it is not deleted automatically.
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
                    raise UserError(f"{self.metrics}: line {number} is not a metrics record: {line[:60]!r}; delete it")
                past = record["step"] > step or (record["step"] == step and "val_loss" in record and not validated)
                if line.endswith("\n") and not past:
                    kept.append(line)
        write_text(self.metrics, "".join(kept))

    def append_metrics(self, lines: Sequence[str]) -> None:
        """Append lines, all or none. Raises SpdfError if they cannot be written."""
        with writing(self.metrics), self.metrics.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            content = "".join(lines).encode()
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with contextlib.suppress(OSError):  # otherwise `cut_metrics` removes the incomplete line later
                    file.truncate(size)
                raise

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a small JSON file in the run folder, atomically. Raises SpdfError if that fails."""
        write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content that ``write_json`` wrote; None without the file. Raises UserError for a damaged file."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}; delete it, and it is written again") from None
        return content if isinstance(content, dict) else None
