"""`python -m gpu_lab run | pack | report`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path


def device() -> AbstractContextManager[None]:
    """The pretended CUDA device of the tests if PRETEND_CUDA is set."""
    if not os.environ.get("PRETEND_CUDA"):
        return nullcontext()
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests/gpu"))
    context: AbstractContextManager[None] = importlib.import_module("pretended_cuda").pretended_cuda()
    return context


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_lab", description="Measures GPU kernels and training steps.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure everything on this machine's GPU, most valuable first")
    run.add_argument("--out", type=Path, default=Path("runs/gpu_lab"), help="folder of the results (runs/gpu_lab)")
    run.add_argument("--minutes", type=float, default=8.0, help="most time for all parts together (8)")
    run.add_argument("--parts", nargs="+", help="only these parts")
    run.add_argument("--smoke", action="store_true", help="every part once on a pretended GPU")
    pack = commands.add_parser("pack", help="collect wheels and the tree for a machine without internet")
    pack.add_argument("--out", type=Path, default=Path(".gpu_pack"), help="folder to write (.gpu_pack)")
    pack.add_argument("--python", default="3.12", help="the target's Python (3.12)")
    work = commands.add_parser("work", help="the process of `run` that measures")
    work.add_argument("--out", type=Path, required=True)
    work.add_argument("--seconds", type=float, required=True)
    work.add_argument("--smoke", action="store_true")
    work.add_argument("--parts", nargs="+", required=True)
    losses = commands.add_parser("losses", help="the losses of tiny models on one device, as JSON")
    losses.add_argument("device", choices=("cpu", "cuda"))
    losses.add_argument("count", type=int, help="of the first checks")
    report = commands.add_parser("report", help="print the table of a results file and draw its figure")
    report.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.command == "pack":
        from gpu_lab.pack import write_pack

        return write_pack(args.out, args.python)
    if args.command == "report":
        from gpu_lab.report import write_report

        return write_report(args.file)
    if args.command == "losses":
        from gpu_lab.steps import print_losses

        with device():
            print_losses(args.device, args.count)
        return 0
    if args.smoke:
        os.environ["PRETEND_CUDA"] = "1"
    from gpu_lab import run as lab

    with device():
        if args.command == "work":
            return lab.work(args.out, args.seconds, args.smoke, args.parts)
        return lab.run_lab(args.out, args.minutes * 60, args.smoke, args.parts)


if __name__ == "__main__":
    sys.exit(main())
