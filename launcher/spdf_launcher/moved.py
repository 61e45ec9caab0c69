"""Updates the paths in run configs after a workflow's folder was moved."""

from __future__ import annotations

from pathlib import Path

import yaml

from spdf_dist.config.errors import UserError
from spdf_dist.config.yaml_reader import read_yaml_file
from spdf_launcher.folder import write_text
from spdf_launcher.references import map_text


def follow(run_dir: Path, job_id: str) -> None:
    """Replace the old location of the workflow's folder in a run's config; otherwise the trainer sees another run.

    A config that is missing, cannot be read or belongs to another run is not changed; the trainer reports it.
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
    old, new = before.removesuffix(inside), str(run_dir).removesuffix(inside)
    moved = map_text(tree, lambda text: new + text.removeprefix(old) if text.startswith(f"{old}/") else text)
    write_text(config, yaml.safe_dump(moved, sort_keys=False, width=120))
