"""`make chaos`: the fault campaign. Prints seed and counts, writes them as JSON, ends with 1 when a promise broke."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from chaos import campaign, forks, fuzz
from chaos.slurm_faults import SlurmFaults

PARTS = ("fuzz", "kills", "signals", "races", "limits", "refusals", "slurm")
USUAL = PARTS[:-1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="time for all parts (20)")
    parser.add_argument("--seed", type=int, default=None, help="of every random choice (default: the time)")
    parser.add_argument("--most", type=int, default=10**6, help="most faults of a part")
    parser.add_argument("--fuzzed", type=int, default=150, help="damaged files of each kind (150)")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=USUAL, help="parts to run (all but slurm)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the counts go")
    args = parser.parse_args()
    seed = int(time.time()) if args.seed is None else args.seed
    if "refusals" in args.only and not forks.has_shim():
        forks.load_shim(Path(tempfile.mkdtemp(prefix="spdf-shim-")))
    print(f"chaos: seed {seed}", flush=True)
    target = args.json.resolve() if args.json else None
    report: dict[str, object] = {"schema_version": 1, "seed": seed}
    broken = 0
    work = Path(tempfile.mkdtemp(prefix="spdf-chaos-"))
    forks.preload()
    began = time.monotonic()
    if "fuzz" in args.only:
        counts = {name: asdict(count) for name, count in fuzz.fuzz_all(args.fuzzed, seed).items()}
        tried = sum(count["tried"] for count in counts.values())
        failures = [f"{name}: {text}" for name, count in counts.items() for text in count["failures"]]
        report["fuzz"] = {"tried": tried, "kinds": counts}
        broken += tell("fuzz", {"damaged files": tried, "kinds": len(counts)}, failures, began)
    rest = [part for part in PARTS if part in args.only and part != "fuzz"]
    faults = campaign.Campaign(work, seed) if rest else None
    end = began + 60 * args.minutes
    for number, part in enumerate(rest):
        started = time.monotonic()
        deadline = started + max(0.0, end - started) / (len(rest) - number)
        if part == "slurm":
            assert faults is not None
            tally = SlurmFaults(faults).run(deadline, args.most)
        else:
            tally = getattr(faults, part)(deadline, args.most)
        report[part] = asdict(tally)
        broken += tell(part, tally.counts, tally.failures, started)
    report["seconds"] = time.monotonic() - began
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report, indent=1) + "\n")
    if shim := os.environ.get(forks.SHIM_FOLDER):
        shutil.rmtree(shim)
    if not broken:
        shutil.rmtree(work)
    else:
        print(f"chaos: {broken} promises broken; the folder is {work}; --seed {seed} repeats the choices")
    return 1 if broken else 0


def tell(part: str, counts: dict[str, int], failures: list[str], began: float) -> int:
    """Print the counts and failures of a part, and return the number of failures."""
    text = ", ".join(f"{number} {name}" for name, number in counts.items())
    print(f"chaos: {part}: {text}; {len(failures)} failures; {time.monotonic() - began:.0f} s", flush=True)
    for failure in failures[:20]:
        print(f"  {failure}", flush=True)
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
