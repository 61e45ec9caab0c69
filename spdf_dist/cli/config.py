"""Print the resolved config: base files and overrides applied, defaults filled in.

CONFIG is a YAML file or the name of a shipped config; without it the shipped ones are listed."""

from __future__ import annotations

import argparse

from spdf_dist.config.load import find_config, load_config, parse_override, read_tree, shipped_configs, to_yaml
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig

HELP = "print the resolved config, or list the shipped ones"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a YAML file or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values to put on top")


def run(args: argparse.Namespace) -> int:
    if args.config is None:
        print("\n".join(shipped_configs()))
        return 0
    keys = set(read_tree(find_config(args.config))) | {key for o in args.overrides for key in parse_override(o)}
    if "jobs" in keys:
        print(find_config(args.config).read_text(encoding="utf-8"), end="")
    elif "finetune" in keys:
        print(to_yaml(load_config(FinetuneConfig, args.config, args.overrides)), end="")
    else:
        print(to_yaml(load_config(PretrainConfig, args.config, args.overrides)), end="")
    return 0
