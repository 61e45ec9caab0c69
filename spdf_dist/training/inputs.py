"""Compares a run's inputs on the disk with those that the run began with. It reads little, and imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from spdf_dist.base.digests import file_digest
from spdf_dist.base.numbers import counted
from spdf_dist.checkpoint.find import latest, resolve
from spdf_dist.checkpoint.manifest import read_manifest
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.schema import AnyConfig, FinetuneConfig, PretrainConfig
from spdf_dist.data.loader import content_identity
from spdf_dist.data.megatron import megatron_prefix
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.training.run_folder import RunFolder


def warn_of_shared_data(kind: str, digests: dict[str, list[str]]) -> None:
    """Warn if validation data are training data. ``digests`` are those of ``RunFolder.keep_data``."""
    if same := set(digests["training"]) & set(digests["validation"]):
        print(
            f"{kind}: WARNING: validation data that are also training data ({counted(len(same), 'data set')}): the "
            "validation loss does not show overfitting",
            file=sys.stderr,
        )


def warn_of_another_origin(folder: RunFolder, config: PretrainConfig) -> None:
    """Warn if ``training.init_from`` names another checkpoint than the one that the run in ``folder`` began with.

    This is not an error, because the run no longer needs the checkpoint. A checkpoint that is gone is not compared.
    """
    newest = latest(folder.checkpoints)
    if config.training.init_from is None or newest is None:
        return
    path = Path(config.training.init_from).expanduser()
    began = ((read_manifest(newest).source or {}).get("lineage") or [{}])[0]
    if not began.get("manifest_sha256") or not path.exists():
        return
    found = resolve(path)
    if read_manifest(found).sha256 != began["manifest_sha256"]:
        print(
            f"pretrain: WARNING: training.init_from: {found} is not the checkpoint that the run in {folder.path} began "
            f"with (step {began.get('step')} of {began.get('path')}); the run does not use it",
            file=sys.stderr,
        )


def compare_with_disk(folder: RunFolder, config: AnyConfig, *, change: bool = False) -> list[str]:
    """Compare the inputs of a complete run with those on the disk; inputs that are gone are not compared.

    Returns the inputs that differ, in words. Raises UserError for a difference, unless ``change`` allows it, and for an
    input that is damaged.
    """
    if isinstance(config, PretrainConfig):
        warn_of_another_origin(folder, config)
    current = {name: digests() for name, (path, digests) in readers(config).items() if all(map(is_there, path))}
    return folder.changed_data(current, change=change)


def is_there(path: Path) -> bool:
    """Whether a file, a folder or Megatron files exist."""
    return path.exists() or megatron_prefix(path) is not None


def readers(config: AnyConfig) -> dict[str, tuple[list[Path], Callable[[], list[str]]]]:
    """The paths of each input, and a function that returns its digests; the keys are those of ``INPUTS``."""
    if isinstance(config, FinetuneConfig):
        task = config.finetune
        origin = Path(task.checkpoint)
        found = {
            "training": ([Path(task.train)], lambda: content_digests(task.train)),
            "validation": ([Path(task.validation)], lambda: content_digests(task.validation)),
            "checkpoint": ([origin], lambda: [Checkpoint(origin).manifest.sha256]),
        }
        tokenizer = Checkpoint(origin).tokenizer_dir if origin.exists() else None
    else:
        train, validation = (
            [Path(entry.path) for entry in part] for part in (config.data.train, config.data.validation)
        )
        length = config.model.seq_length
        found = {
            "training": (train, lambda: [content_identity(path, length) for path in train]),
            "validation": (validation, lambda: [content_identity(path, length) for path in validation]),
        }
        named = config.data.tokenizer
        tokenizer = Path(named) if named is not None else train[0] / "tokenizer" if train else None
    if tokenizer is not None:
        path = tokenizer
        found["tokenizer"] = ([path], lambda: [load_tokenizer(path).digest])
    if isinstance(config.deepspeed, str):
        settings = Path(config.deepspeed)
        found["deepspeed"] = ([settings], lambda: [file_digest(settings)])
    return found


def content_digests(path: str) -> list[str]:
    """SHA-256 of a task's file, or of each file below its folder in the order of paths; empty for an empty path."""
    if not path:
        return []
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    return [file_digest(file) for file in files]
