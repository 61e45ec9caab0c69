"""Print the resolved config: base files and overrides applied, defaults filled in.

CONFIG is a YAML file or the name of a shipped config. Without CONFIG, the command lists the shipped configs and what
they are. A workflow is printed with its base and overrides; `spdf run --dry-run` checks it."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

import yaml

from spdf_dist.config.load import config_from_tree, find_config, kind_of, load_tree, shipped_configs, to_yaml

HELP = "print the resolved config, or list the shipped ones"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a YAML file or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="sets a config key; may be repeated")


def summary(path: Path) -> str:
    """The first sentence of the comment with which a config begins."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.lstrip("# ") for line in comment)
    return re.split(r"[.:;](?: |$)", text)[0]


def run(args: argparse.Namespace) -> int:
    if args.config is None:
        names = shipped_configs()
        width = max(map(len, names))
        for name in names:
            print(f"{name:<{width}}  {summary(find_config(name))}")
        return 0
    # `spdf run` takes the name of a workflow without its folder.
    workflow = f"workflows/{args.config}"
    source = workflow if not Path(args.config).is_file() and workflow in shipped_configs() else args.config
    tree = load_tree(source, args.overrides)
    if "jobs" in tree:
        print(yaml.safe_dump(tree, sort_keys=False, width=120, allow_unicode=True), end="")
    else:
        print(to_yaml(config_from_tree(kind_of(tree), tree)), end="")
    return 0
