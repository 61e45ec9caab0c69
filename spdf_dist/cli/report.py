"""One page, PNG plots and CSV tables from run folders and workflow folders.

  spdf report runs/demo --out runs/demo/report
  spdf report runs/dense runs/s75 gemm.json --out report

A folder is searched for runs (config.yaml with metrics.jsonl) and for the output of `spdf evaluate --json`; a file is
the output of `spdf bench gemm --json`, for the paper's Figure 1. The page holds everything and needs no network.
A workflow whose variants are called SIZE-dense, SIZE-s75, ... is an evidence study: it gets evidence.csv, a row for
each cell, and a verdict on each of the paper's hypotheses; --markdown puts them into docs/evidence.md.

A run that cannot be read is named and left out; the exit code is then 1."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "HTML page, plots and tables from run and workflow folders"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="run folders, workflow folders, JSON files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write index.html, PNGs and CSVs into")
    parser.add_argument(
        "--markdown", type=Path, metavar="PAGE", help="put an evidence study's results between the marks of this page"
    )
    parser.add_argument("--json", action="store_true", help="print the paths and the summary as one JSON object")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.report.study import read_study
    from spdf_dist.report.write import write_study_report

    study = read_study(args.folders)
    page = write_study_report(study, args.out, args.markdown)
    for line in study.damaged.values():
        print(f"spdf report: warning: {line}", file=sys.stderr)
    if args.json:
        import json

        files = sorted(str(path) for path in args.out.iterdir() if path.suffix in (".html", ".png", ".csv"))
        print(json.dumps({"schema_version": 1, "report": str(page), "files": files}))
    else:
        print(f"report: {page}")
    return 1 if study.damaged else 0
