"""Draw the coordinate check of a config: the size of activations over widths and densities during training.

Each width and density trains for a few steps on synthetic text, in the standard parameterization and in SuPar. If the
lines of a panel coincide, one learning rate is the best for all of them.

  spdf coord-check cpu_1m --out coord
  spdf coord-check cpu_1m --widths 64 128 256 --densities 1 0.25 0.0625 --seeds 5 --out coord training.lr=1e-2"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spdf_dist.base.extras import require_extra
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig

HELP = "draw the coordinate check of a config over widths and densities"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="sets a config key; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="folder for coord_check.png and coord_check.json")
    parser.add_argument("--widths", type=int, nargs="+", help="hidden sizes (default: 0.5, 1 and 2 times the config's)")
    parser.add_argument(
        "--densities",
        type=float,
        nargs="+",
        default=[1.0, 0.5, 0.25, 0.125],
        help="fractions of the weights that are kept (default: 1 0.5 0.25 0.125)",
    )
    parser.add_argument("--steps", type=int, default=10, help="updates per run (default: 10)")
    parser.add_argument("--seeds", type=int, default=1, help="runs per width and density (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the spreads as one JSON object")


def run(args: argparse.Namespace) -> int:
    config = load_config(PretrainConfig, args.config, args.overrides)
    size = config.model.hidden_size
    widths = args.widths or [size // 2, size, 2 * size]
    for name, values in {"--widths": widths, "--steps": [args.steps], "--seeds": [args.seeds]}.items():
        if min(values) < 1:
            raise UserError(f"{name}: must be 1 or more, got {min(values)}")
    if not all(0 < density <= 1 for density in args.densities):
        raise UserError("--densities: each must be in (0, 1]; 1 is dense")
    require_extra("report", "spdf coord-check")
    from spdf_dist.training.coord_check import coordinate_check, draw, summary

    points = coordinate_check(config, widths, args.densities, args.steps, range(1, args.seeds + 1))
    found = summary(points)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "coord_check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        draw(points, args.out / "coord_check.png")
    except OSError as error:
        raise UserError(f"--out: {args.out} cannot be written: {error.strerror}") from None
    if args.json:
        print(json.dumps({"schema_version": 1, "spread": found["spread"]}))
        return 0
    for name, by_step in found["spread"].items():
        first, last = by_step["0"], by_step[str(args.steps)]
        print(
            f"{name:9} largest over smallest output: attention {first['attention']:.3g}x, MLP {first['mlp']:.3g}x "
            f"before training; {last['attention']:.3g}x, {last['mlp']:.3g}x after {args.steps} updates"
        )
    print(f"figure and data: {args.out}/coord_check.png, {args.out}/coord_check.json")
    return 0
