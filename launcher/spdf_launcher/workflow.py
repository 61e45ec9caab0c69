"""Reads and checks a workflow file: variants, job templates, clusters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import (
    at_key,
    build,
    find_config,
    flatten,
    merge,
    parse_override,
    read_tree,
    shipped_configs,
    shown,
)
from spdf_dist.config.paths import with_home
from spdf_dist.config.suggest import nearest

FOLDER = "workflows/"
"""Beginning of the names of shipped workflows among the shipped configs."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LONGEST_NAME = 100
"""Characters of the name of a job, a variant or a grid's key. Names of folders hold several of them."""
JOB_KEYS = ("kind", "needs", "config", "set", "grid", "variants", "resources")
MAX_RESOURCES = 1_000_000
MEMORY = re.compile(r"[0-9]{1,12}([KMGTkmgt][Bb]?)?")
"""The form of sbatch's --mem. 0 is all memory of the node."""
MAX_CELLS = 10_000
"""Largest number of cells of one grid."""
TOP_KEYS = ("variants", "jobs", "clusters", "cluster")


@dataclass(frozen=True)
class Resources:
    """The resources of one job (one cell). `tensor` sets the config's parallel.tensor with every executor."""

    nodes: int = 1
    ranks_per_node: int = 1
    """Processes per node; with GPUs, one per GPU."""
    gpus_per_node: int = 0
    cpus_per_rank: int = 1
    mem: str | None = None
    """Memory per node in the form of sbatch: 64G."""
    time: str | None = None
    """Time limit in the form of sbatch: "1-00:00:00". It needs quotes, because YAML reads 1:00:00 as 3600."""
    tensor: int | None = None
    throttle: int | None = None
    """Most cells of a grid that run at the same time."""
    signal_seconds: int = 120
    """Seconds between the signal to save and the time limit."""
    max_failures: int = 3
    """Failures in a row, without a new checkpoint in between, after which the job is not retried."""

    @property
    def ranks(self) -> int:
        """Processes of the whole job."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Cluster:
    """Settings of all jobs on a Slurm cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: list[str] = field(default_factory=list)
    """Further sbatch options, each as --name=value."""
    srun: list[str] = field(default_factory=list)
    """Further srun options, such as --container-image=...; each as --name=value."""
    setup: list[str] = field(default_factory=list)
    """Shell lines at the start of the batch script: module load ..., source .../activate."""
    env: dict[str, Any] = field(default_factory=dict)
    """Environment variables of every job."""
    python: str | None = None
    """The Python of the ranks, such as one inside a container; null: the Python that runs `spdf`."""


@dataclass(frozen=True)
class Template:
    """One entry of `jobs:`. The keys of `set` are dotted names."""

    name: str
    kind: str
    needs: tuple[str, ...]
    config: str | None
    set: dict[str, Any]
    grid: dict[str, list[Any]]
    variants: tuple[str, ...] | None
    """Restricts the job to these variants; empty: one job without a variant; None: the kind and the needs decide."""
    resources: Resources


@dataclass(frozen=True)
class Workflow:
    """A workflow file with its overrides applied."""

    path: Path
    variants: dict[str, dict[str, Any]]
    jobs: dict[str, Template]
    cluster: Cluster
    tree: dict[str, Any]
    """The content of the file after base files and overrides; workflow.yaml records it."""


def load_workflow(source: str, overrides: Sequence[str] = ()) -> Workflow:
    """Read a workflow: a path or a shipped name, with ``key.sub=value`` overrides on top.

    Raises UserError for a mistake in the file. Input files are not checked here.
    """
    path = find_workflow(source)
    tree = nested(read_tree(path, find_workflow))
    for override in overrides:
        merge(tree, nested(parse_override(override)))
    return parse_workflow(path, tree)


def find_workflow(source: str) -> Path:
    """The file of a workflow: a path, or the name of a shipped workflow with or without ``workflows/``."""
    name = source.removeprefix("configs/").removeprefix(FOLDER)
    if Path(with_home(source)).is_file():
        return find_config(source)
    shipped = [config.removeprefix(FOLDER) for config in shipped_configs() if config.startswith(FOLDER)]
    if name.removesuffix(".yaml") in shipped:
        return find_config(f"{FOLDER}{name}")
    raise UserError(f"no workflow '{source}': neither a file nor a shipped workflow{nearest(name, shipped)}")


def nested(tree: Any) -> Any:
    """Mappings with dotted keys as nested mappings, so that overrides apply to both forms."""
    if not isinstance(tree, dict):
        return [nested(item) for item in tree] if isinstance(tree, list) else tree
    result: dict[str, Any] = {}
    for key, value in tree.items():
        merge(result, at_key(str(key), nested(value)))
    return result


def mapping(value: Any, where: str) -> dict[str, Any]:
    """``value`` as a mapping; null is an empty one. Raises UserError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected keys and values, got {shown(value)}")
    return value


def check_keys(tree: dict[str, Any], known: Sequence[str], where: str) -> None:
    """Raise UserError for the first key of ``tree`` that is not in ``known``."""
    for key in tree:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{nearest(key, known)}")


def check_name(name: str, where: str) -> None:
    """Raise UserError unless ``name`` is valid in a path and in a reference."""
    if not NAME.fullmatch(name):
        raise UserError(f"{where}: '{name}' is not a name: use letters, digits, - and _")
    if len(name) > LONGEST_NAME:
        raise UserError(f"{where}: {len(name)} characters are too many for a name: at most {LONGEST_NAME}")


def parse_workflow(path: Path, tree: dict[str, Any]) -> Workflow:
    """The typed workflow of a nested tree."""
    where = str(path)
    if "jobs" not in tree:
        raise UserError(f"{where}: is not a workflow: it has no `jobs:`")
    check_keys(tree, TOP_KEYS, where)
    # A file or an override removes a variant or a job of its base by setting it to null.
    variants = {}
    for name, overrides in mapping(tree.get("variants"), f"{where}: variants").items():
        if overrides is None:
            continue
        check_name(name, f"{where}: variants")
        variants[name] = flatten(mapping(overrides, f"{where}: variants.{name}"))
    jobs = {name: entry for name, entry in mapping(tree["jobs"], f"{where}: jobs").items() if entry is not None}
    if not jobs:
        raise UserError(f"{where}: jobs: is empty")
    templates = {name: parse_template(name, entry, f"{where}: jobs.{name}") for name, entry in jobs.items()}
    for template in templates.values():
        for variant in template.variants or ():
            if variant not in variants:
                raise UserError(
                    f"{where}: jobs.{template.name}.variants: no variant '{variant}'{nearest(variant, variants)}"
                )
    return Workflow(path, variants, templates, parse_cluster(tree, where), tree)


def parse_template(name: str, entry: Any, where: str) -> Template:
    """One job of the file."""
    check_name(name, where)
    entry = mapping(entry, where)
    check_keys(entry, JOB_KEYS, where)
    if "kind" not in entry:
        raise UserError(f"{where}: has no kind")
    needs = entry.get("needs") or []
    needs = [needs] if isinstance(needs, str) else needs
    variants = entry.get("variants")
    variants = [variants] if isinstance(variants, str) else variants
    for key, value in (("needs", needs), ("variants", variants or [])):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{where}.{key}: expected a list of names, got {shown(value)}")
    config = entry.get("config")
    if config is not None and not isinstance(config, str):
        raise UserError(f"{where}.config: expected the path or name of a config, got {shown(config)}")
    resources = mapping(entry.get("resources"), f"{where}.resources")
    if isinstance(resources.get("time"), int):
        raise UserError(f'{where}.resources.time: write it in quotes, as "4:00:00" or "2-00:00:00"')
    try:
        typed: Resources = build(Resources, resources, "")
    except UserError as error:
        raise UserError(f"{where}.resources: {error}") from None
    for key in ("nodes", "ranks_per_node", "cpus_per_rank", "max_failures", "throttle", "signal_seconds"):
        number = getattr(typed, key)
        if number is not None and not 1 <= number <= MAX_RESOURCES:
            raise UserError(f"{where}.resources.{key}: must be 1 to {MAX_RESOURCES}, got {number}")
    if typed.mem is not None and not MEMORY.fullmatch(typed.mem):
        raise UserError(f"{where}.resources.mem: write a number and K, M, G or T, such as 64G, not {shown(typed.mem)}")
    return Template(
        name=name,
        kind=str(entry["kind"]),
        needs=tuple(needs),
        config=config,
        set=flatten(mapping(entry.get("set"), f"{where}.set")),
        grid=parse_grid(flatten(mapping(entry.get("grid"), f"{where}.grid")), f"{where}.grid"),
        variants=None if variants is None else tuple(variants),
        resources=typed,
    )


def parse_grid(axes: dict[str, Any], where: str) -> dict[str, list[Any]]:
    """Each key with its list of values, sorted by key, so that the names of cells do not depend on the file's order."""
    for key, values in axes.items():
        for part in key.split("."):
            check_name(part, f"{where}.{key}")
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}.{key}: expected a list of values, got {values!r}")
    cells = math.prod(len(values) for values in axes.values())
    if cells > MAX_CELLS:
        raise UserError(f"{where}: {cells:,} cells, more than {MAX_CELLS:,}")
    return {key: axes[key] for key in sorted(axes)}


def parse_cluster(tree: dict[str, Any], where: str) -> Cluster:
    """The cluster that `cluster:` names, else the only cluster, else one without settings."""
    clusters = mapping(tree.get("clusters"), f"{where}: clusters")
    chosen = None if tree.get("cluster") is None else str(tree["cluster"])
    if chosen is None and len(clusters) == 1:
        (chosen,) = clusters
    if chosen is None and clusters:
        raise UserError(f"{where}: several clusters ({', '.join(sorted(clusters))}): add cluster=NAME")
    if chosen is not None and chosen not in clusters:
        raise UserError(f"{where}: cluster: no cluster '{chosen}'{nearest(str(chosen), clusters)}")
    entry = mapping(clusters.get(chosen), f"{where}: clusters.{chosen}") if chosen is not None else {}
    try:
        cluster: Cluster = build(Cluster, entry, "")
    except UserError as error:
        raise UserError(f"{where}: clusters.{chosen}: {error}") from None
    for key in ("sbatch", "srun"):
        for option in getattr(cluster, key):
            if not re.fullmatch(r"--[a-z][a-z0-9-]*(=[^\s\"'`$\\]*)?", option):
                raise UserError(f"{where}: clusters.{chosen}.{key}: '{option}' is not an option: write --name=value")
    for key in cluster.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise UserError(f"{where}: clusters.{chosen}.env: '{key}' is not the name of a variable")
    return cluster
