"""`make demo`: the demo workflow from the first job to the table. Real data when SPDF_DATA names a folder with them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from spdf_dist.cli.main import main as spdf
from spdf_dist.workflow_folder import job_folder, read_json
from spdf_launcher.plan import Job
from spdf_launcher.progress import duration
from spdf_launcher.status import read_plan

METRICS = ("bleu", "nist", "meteor", "rouge_l", "cider", "slot_accuracy")


def metric(manifest: dict[str, object], name: str) -> float | None:
    """A metric of a manifest, by its last name."""
    metrics = manifest.get("metrics")
    for key, value in metrics.items() if isinstance(metrics, dict) else ():
        if key.rpartition(".")[2] == name and isinstance(value, int | float):
            return float(value)
    return None


def rows(root: Path, jobs: list[Job]) -> list[list[str]]:
    """The closing table: a variant a row."""
    variants = list(dict.fromkeys(job.variant for job in jobs if job.variant))
    manifests = {(job.name, job.variant): read_json(job_folder(root, job.id).manifest) or {} for job in jobs}
    columns = [("pretrain", "val_loss"), ("finetune", "val_loss"), *(("evaluate", name) for name in METRICS)]
    head = ["variant", "pre-training val loss", "fine-tuning val loss", *METRICS]
    table = [head]
    for variant in variants:
        values = [metric(manifests.get((name, variant), {}), key) for name, key in columns]
        table.append([variant, *("-" if value is None else f"{value:.4f}" for value in values)])
    used = [c for c in range(len(head)) if c == 0 or any(row[c] != "-" for row in table[1:])]
    return [[row[c] for c in used] for row in table]


def main() -> int:
    """Run the demo and say what came of it."""
    data = os.environ.get("SPDF_DATA")
    name = "demo_real" if data else "demo"
    root = Path("runs") / name
    if data:
        print(f"SPDF_DATA is set: real text and E2E from {data}")
    else:
        print("Text of this Python installation, and synthetic E2E from a grammar (set SPDF_DATA for real data)")
    began = time.monotonic()
    code = spdf(["run", name, "--dir", str(root), "--on", "local"])
    if code:
        return code
    table = rows(root, read_plan(root.absolute()))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    print()
    for row in table:
        print(
            "  ".join(
                text.rjust(width) if at else text.ljust(width)
                for at, (text, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    if not data:
        print("The scores are of synthetic data: they say that everything works, and compare with nothing published.")
    print(f"\nreport:      {root}/jobs/report/out/index.html")
    print(f"tensorboard: tensorboard --logdir {root}/jobs")
    print(f"took {duration(time.monotonic() - began)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
