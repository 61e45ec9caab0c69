"""Records the provenance of generated texts and scores.

``spdf generate`` writes ``FILE.provenance.json`` beside its texts. ``spdf evaluate --json`` copies the content to its
output, and ``spdf perplexity --json`` prints the same facts: the checkpoint with its digest and lineage, the task, the
split, the settings, and whether the data are synthetic. The report uses only these records.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from spdf_dist.base.digests import file_digest
from spdf_dist.checkpoint.lineage import lineage
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks.write import is_special, write_lines

SCHEMA_VERSION = 1


def side_file(texts: Path) -> Path:
    """The path of the provenance record of a file of texts."""
    return texts.with_name(f"{texts.name}.provenance.json")


def checkpoint_summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts of a checkpoint: path, step, digest, and the runs that made it."""
    return {
        "path": str(checkpoint.path.resolve()),
        "step": checkpoint.step,
        "manifest_sha256": checkpoint.manifest.sha256,
        "lineage": lineage(checkpoint),
    }


def file_summary(path: Path) -> dict[str, Any]:
    """Facts of a data file: path and sha256 (None for a folder)."""
    return {"path": str(path.resolve()), "sha256": file_digest(path) if path.is_file() else None}


def write_side_file(texts: Path, summary: dict[str, Any]) -> None:
    """Write the provenance record of ``texts``, unless ``texts`` is a device or a pipe."""
    if is_special(texts):
        return
    content = {"schema_version": SCHEMA_VERSION, **summary, "texts_sha256": file_summary(texts)["sha256"]}
    write_lines(side_file(texts), [json.dumps(content, indent=1)])


def read_side_file(texts: Path) -> dict[str, Any] | None:
    """The provenance record of ``texts``; None without one.

    A record of other content is ignored with a message on stderr, because the file has changed since the record.

    Raises:
        UserError: the side file is not a provenance record, or has another schema version.
    """
    path = side_file(texts)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recorded = content["texts_sha256"]
        version = content["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a provenance record ({error!r}): delete it to score the texts alone") from None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}; this version reads {SCHEMA_VERSION}")
    if recorded != file_summary(texts)["sha256"]:
        print(f"{path}: describes other texts than {texts} holds now; it is ignored", file=sys.stderr)
        return None
    return dict(content)
