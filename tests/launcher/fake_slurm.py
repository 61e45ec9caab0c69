"""Replaces sbatch, squeue, sacct, scancel and scontrol, and replays output of a real Slurm (recorded/slurm.json).

FAKE_SLURM names a folder. The file `calls` in it gets one line per call. A file `replay` names the recording that
squeue replays. A file `refuse` contains names of scripts that sbatch refuses.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

RECORDED = json.loads((Path(__file__).parent / "recorded/slurm.json").read_text())


def replay(name: str) -> int:
    """Print what was recorded under ``name``."""
    said = RECORDED[name]
    sys.stdout.write(said["stdout"])
    sys.stderr.write(said["stderr"])
    return int(said["returncode"])


def main(program: str, words: list[str]) -> int:
    """One call."""
    folder = Path(os.environ["FAKE_SLURM"])
    with (folder / "calls").open("a") as file:
        file.write(json.dumps([program, *words]) + "\n")
    if program == "sbatch":
        refused = (folder / "refuse").read_text() if (folder / "refuse").exists() else ""
        if refused and refused in words[-1]:
            return replay("refused")
        if "--test-only" in words:
            return replay("accepted")
        count = sum('"--parsable"' in line for line in (folder / "calls").read_text().splitlines())
        print(count)
        return 0
    if program == "squeue":
        return replay((folder / "replay").read_text()) if (folder / "replay").exists() else 0
    if program == "sacct":
        return replay("sacct_c" if "-c" in words else "sacct")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).name, sys.argv[2:]))
