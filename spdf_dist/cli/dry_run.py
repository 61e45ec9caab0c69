"""The options ``--dry-run`` and ``--json`` of the training commands, and what they print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import to_yaml
from spdf_dist.config.schema import AnyConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print config, parameters, steps, memory and layout, and stop"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print one JSON object")


def check(args: argparse.Namespace) -> None:
    """Raise UserError for ``--json`` without ``--dry-run``."""
    if args.json and not args.dry_run:
        raise UserError("--json goes with --dry-run: training answers with a run folder")


def show(
    args: argparse.Namespace, config: AnyConfig, summary: Mapping[str, Any], on_this_machine: Callable[[], list[str]]
) -> None:
    """Print the resolved config, the plan's ``summary``, and the lines on time and data on this machine; or JSON."""
    if args.json:
        print(json.dumps(dict(summary)))
        return
    from spdf_dist.accounting.plan import plan_text

    print(f"{to_yaml(config)}\n{plan_text(summary)}", flush=True)
    print("\non this machine:", *(f"  {line}" for line in on_this_machine()), sep="\n")
