"""An HTML page, PNG figures and CSV tables from run folders and workflow folders.

  spdf report runs/demo --out runs/demo/report
  spdf report runs/dense runs/s75 scores.json gemm.json --out report --name baseline=runs/dense

The command searches a folder for runs (config.yaml with metrics.jsonl) and for the output of `spdf evaluate --json` and
`spdf perplexity --json`. A file is such output, or that of `spdf bench gemm --json` for the paper's Figure 1. The page
needs no network and no other file.

Runs that differ only in their seeds are averaged. Any other difference makes a separate variant, which is named by the
difference. --name gives the runs in a folder a name.

For the workflow study_cpu, the evidence study, the command also writes evidence.csv, with one row per run, and a
verdict on each hypothesis. --markdown writes these results into a page such as docs/evidence.md. The folder of
evidence.csv gives the same results without the runs.

A run that cannot be read is named and left out; the exit code is then 1."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "write an HTML page, figures and tables from run and workflow folders"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="run folders, workflow folders, JSON files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of index.html, the PNGs and the CSVs")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        type=label,
        metavar="LABEL=DIR",
        help="name of the runs in DIR; may be repeated",
    )
    parser.add_argument(
        "--markdown",
        action="append",
        default=[],
        type=Path,
        metavar="PAGE",
        help="fill the fields of this Markdown page with the results of an evidence study; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the paths and the summary as one JSON object")


def label(text: str) -> tuple[Path, str]:
    """A value of --name."""
    name, equals, folder = text.partition("=")
    if not name or not equals or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"'{text}': write LABEL=DIR, with a folder that exists")
    return Path(folder), name


def run(args: argparse.Namespace) -> int:
    import shlex

    from spdf_dist.base.atomic_files import write_text
    from spdf_dist.base.extras import require_extra

    require_extra("report", "spdf report")
    from spdf_dist.report.results import read_results
    from spdf_dist.report.write import write_report
    from spdf_dist.studies.evidence.rows import ROWS, read_evidence
    from spdf_dist.studies.evidence.section import evidence_section, filled_pages, parts
    from spdf_dist.studies.paper.section import paper_section

    results = read_results(args.folders, dict(args.name))
    evidence = read_evidence(results, args.folders)
    command = ["spdf", "report", *map(str, args.folders), "--out", str(args.out)]
    command += [word for folder, name in args.name for word in ("--name", f"{name}={folder}")]
    command += [word for page in args.markdown for word in ("--markdown", str(page))]
    study = parts(evidence)
    pages = filled_pages(args.markdown, evidence, study, args.out, shlex.join(command))
    sections = evidence_section(evidence, study)
    page = write_report(results, args.out, shlex.join(command), first=sections, last=[paper_section(results)])
    if study:
        write_text(args.out / ROWS, evidence.rows.to_csv(index=False))
    for filled, text in pages.items():
        write_text(filled, text)
    for line in results.damaged.values():
        print(f"spdf report: warning: {line}", file=sys.stderr)
    for found in results.unattributed:
        print(f"spdf report: {found['path']}: no record of what was scored; listed and not compared", file=sys.stderr)
    if args.json:
        import json

        files = sorted(str(path) for path in args.out.iterdir() if path.suffix in (".html", ".png", ".csv"))
        print(json.dumps({"schema_version": 1, "report": str(page), "files": files}))
    else:
        print(f"report: {page}")
    return 1 if results.damaged else 0
