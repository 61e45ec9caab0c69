"""A workflow's folder that was moved: its runs name themselves and each other by the place where they began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spdf_dist.config.errors import UserError
from spdf_dist.config.yaml_reader import read_yaml_file
from spdf_launcher.folder import write_text


def follow(run_dir: Path, job_id: str) -> None:
    """Make a run's own config name the workflow's folder where it lies now; the trainer would see another run else.

    Leaves a config alone that is not there, cannot be read, or is of a run from elsewhere: the trainer speaks of it.
    """
    config = run_dir / "config.yaml"
    try:
        tree = read_yaml_file(config)
    except UserError:
        return
    inside = f"/jobs/{job_id}/{run_dir.name}"
    before = str(tree.get("run_dir")) if isinstance(tree, dict) else ""
    if before == str(run_dir) or not before.endswith(inside):
        return
    moved = relocate(tree, before.removesuffix(inside), str(run_dir).removesuffix(inside))
    write_text(config, yaml.safe_dump(moved, sort_keys=False, width=120))


def relocate(value: Any, old: str, new: str) -> Any:
    """``value`` with the paths below ``old`` in it below ``new``."""
    if isinstance(value, str) and value.startswith(f"{old}/"):
        return new + value.removeprefix(old)
    if isinstance(value, list):
        return [relocate(item, old, new) for item in value]
    if isinstance(value, dict):
        return {key: relocate(item, old, new) for key, item in value.items()}
    return value
