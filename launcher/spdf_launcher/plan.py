"""Converts a workflow to jobs: expands variants and grids, resolves references, checks all inputs.

Two axes multiply jobs. A `pretrain` template gives one job per variant, and so do the templates that need it, except
`report`. A template with a `grid` gives one job per cell, and so do the templates that need it, except `select` and
`report`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdf_dist.config.budget import total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import (
    IDENTITY_EXEMPT,
    config_beside,
    config_from_tree,
    flatten,
    is_below,
    merge,
    read_tree,
    to_tree,
)
from spdf_dist.config.paths import written_path
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig
from spdf_dist.config.suggest import nearest
from spdf_dist.config.validate import require_inputs
from spdf_dist.data.tasks import lower_is_better
from spdf_dist.workflow_folder import RUN, job_folder, read_json
from spdf_launcher import kinds
from spdf_launcher.fingerprint import fingerprint
from spdf_launcher.folder import digest
from spdf_launcher.kinds import KINDS, Kind
from spdf_launcher.references import escape, references, substitute
from spdf_launcher.workflow import Resources, Template, Workflow, nested

SELECT_OPTIONS = ("metric", "mode", "per")
RUN_DIR = "run_dir"
"""Name of the output of training jobs."""


@dataclass(frozen=True)
class Choice:
    """One value of a grid key: its name in the cell's name, and the settings."""

    key: str
    name: str
    sets: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One job, ready to run. ``arguments`` and ``config`` may contain references that only a finished `select`
    resolves."""

    id: str
    name: str
    kind: str
    variant: str | None
    cell: dict[str, str]
    """The name of the value of each grid key."""
    values: dict[str, Any]
    """Settings of the cell."""
    needs: tuple[str, ...]
    arguments: list[str]
    """Words after ``spdf``."""
    config: dict[str, Any] | None
    outputs: dict[str, str]
    files: dict[str, str]
    """Fingerprints of input files that no job makes, by path."""
    steps: int | None
    """Optimizer steps; None if the config does not determine them."""
    select: dict[str, Any] | None
    resources: Resources
    key: str
    """Digest of everything that the job's result depends on."""

    @property
    def fan_in(self) -> bool:
        """Whether the job runs although some of the jobs that it needs failed."""
        return KINDS[self.kind].fan_in == "cells"


def job_from_json(value: dict[str, Any]) -> Job:
    """The job of the content of a job.json."""
    fields = {field.name: value[field.name] for field in dataclasses.fields(Job)}
    return Job(**fields | {"needs": tuple(value["needs"]), "resources": Resources(**value["resources"])})


def outputs(root: Path, job_id: str, kind: str) -> dict[str, str]:
    """The paths of a job's outputs by name."""
    return {name: str(job_folder(root, job_id).path / path) for name, path in KINDS[kind].outputs.items()}


def plan(workflow: Workflow, root: Path, ranks_from_launcher: bool) -> list[Job]:
    """All jobs of a workflow in an order in which they can run.

    Args:
        root: the workflow's folder, an absolute path.
        ranks_from_launcher: srun or deepspeed starts nodes x ranks_per_node ranks, which determines parallel.data.

    Raises:
        UserError: a mistake in the workflow, in a config or in an input file.
    """
    order = sort_templates(workflow)
    expansion = Expansion(workflow, root, ranks_from_launcher)
    for template in order:
        expansion.add(template)
    return list(expansion.jobs.values())


def template_needs(workflow: Workflow, template: Template, variants: Iterable[str] | None = None) -> list[str]:
    """Names of the templates that a template needs: `needs`, its references, and the references of ``variants``.

    ``variants`` None stands for all variants that the template may have.
    """
    values: list[Any] = [template.set, template.grid]
    if KINDS[template.kind].config is PretrainConfig:
        if variants is None:
            variants = workflow.variants if template.variants is None else template.variants
        values += [workflow.variants[variant] for variant in variants]
    found = [parts[1] for parts in references(values) if parts[0] == "jobs"]
    return list(dict.fromkeys([*template.needs, *found]))


def sort_templates(workflow: Workflow) -> list[Template]:
    """The templates, each after those that it needs. Raises UserError for an unknown kind or job, or a cycle."""
    for template in workflow.jobs.values():
        where = f"{workflow.path}: jobs.{template.name}"
        if template.kind not in KINDS:
            raise UserError(f"{where}: unknown kind '{template.kind}'{nearest(template.kind, KINDS)}")
        for need in template_needs(workflow, template):
            if need not in workflow.jobs:
                raise UserError(f"{where}: needs unknown job '{need}'{nearest(need, workflow.jobs)}")
    done: dict[str, Template] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in path:
            raise UserError(f"{workflow.path}: the jobs form a cycle: {' -> '.join([*path[path.index(name) :], name])}")
        path.append(name)
        for need in template_needs(workflow, workflow.jobs[name]):
            visit(need)
        path.pop()
        done[name] = workflow.jobs[name]

    for name in workflow.jobs:
        visit(name)
    return list(done.values())


class Expansion:
    """Expands templates one after the other, each after those that it needs."""

    def __init__(self, workflow: Workflow, root: Path, ranks_from_launcher: bool) -> None:
        self.workflow = workflow
        self.root = root
        self.ranks_from_launcher = ranks_from_launcher
        self.jobs: dict[str, Job] = {}
        self.of_template: dict[str, list[Job]] = {}
        self.axes: dict[str, dict[str, list[Choice]]] = {}
        self.variants: dict[str, list[str] | None] = {}
        self.fingerprints: dict[Path, str] = {}

    def add(self, template: Template) -> None:
        """Expand one template."""
        kind = KINDS[template.kind]
        needs = template_needs(self.workflow, template)
        where = f"{self.workflow.path}: jobs.{template.name}"
        variants = self.variants_of(template, needs)
        axes: dict[str, list[Choice]] = {}
        if not kind.fan_in:
            for need in needs:
                axes |= self.axes[need]
        elif kind.fan_in == "cells":
            axes = self.kept_axes(template, needs, where)
        for key, values in template.grid.items():
            if key in axes:
                raise UserError(f"{where}.grid.{key}: is a grid key of a job that it needs already")
            if kind.fan_in:
                raise UserError(f"{where}.grid: a {template.kind} job takes no grid")
            axes[key] = choices(key, values, f"{where}.grid.{key}")
        axes = {key: axes[key] for key in sorted(axes)}
        self.axes[template.name], self.variants[template.name] = axes, variants
        self.of_template[template.name] = []
        for variant in variants if variants is not None else [None]:
            for cell in itertools.product(*axes.values()):
                parts = [part for part in (variant, cell_name(cell)) if part]
                label = f" ({'/'.join(parts)})" if parts else ""
                own = template_needs(self.workflow, template, [variant] if variant is not None else [])
                try:
                    job = self.instance(template, kind, own, variant, cell)
                except UserError as error:
                    raise UserError(f"{where}{label}: {error}") from None
                if job.id in self.jobs:
                    raise UserError(f"{where}.grid: two cells have the name {job.id}")
                self.jobs[job.id] = job
                self.of_template[template.name].append(job)

    def variants_of(self, template: Template, needs: list[str]) -> list[str] | None:
        """The variants that a template has jobs for; None if it has jobs without a variant."""
        kind = KINDS[template.kind]
        if kind.fan_in == "all":
            return None
        found = list(self.workflow.variants) if kind.config is PretrainConfig and self.workflow.variants else None
        inherited = [self.variants[need] for need in needs if self.variants[need] is not None]
        for parent in inherited:
            found = [name for name in (parent or []) if found is None or name in found]
        if template.variants is not None:
            chosen = [name for name in template.variants if found is None or name in found]
            if not chosen and inherited:
                raise UserError(
                    f"{self.workflow.path}: jobs.{template.name}.variants: what it needs exists once per variant "
                    f"({', '.join(found or [])})"
                )
            found = chosen or None
        return found

    def kept_axes(self, template: Template, needs: list[str], where: str) -> dict[str, list[Choice]]:
        """The grid keys in `per` of a `select` job, with their values: it makes one choice per value."""
        below: dict[str, list[Choice]] = {}
        for need in needs:
            below |= self.axes[need]
        per = template.set.get("per") or []
        per = per if isinstance(per, list) else [per]
        for key in per:
            if not isinstance(key, str) or key not in below:
                raise UserError(
                    f"{where}.set.per: '{key}' is not a grid key of the jobs that it needs{nearest(str(key), below)}"
                )
        return {key: below[key] for key in per}

    def parents(self, needs: list[str], variant: str | None, cell: dict[str, str]) -> dict[str, list[Job]]:
        """The jobs of each needed template that match this variant and cell."""

        def agrees(job: Job) -> bool:
            same_variant = variant is None or job.variant is None or job.variant == variant
            return same_variant and all(cell.get(key, name) == name for key, name in job.cell.items())

        return {need: [job for job in self.of_template[need] if agrees(job)] for need in needs}

    def instance(
        self, template: Template, kind: Kind, needs: list[str], variant: str | None, cell: tuple[Choice, ...]
    ) -> Job:
        """One job of a template."""
        names = {choice.key: choice.name for choice in cell}
        parents = self.parents(needs, variant, names)
        job_id = "/".join(part for part in (template.name, variant, cell_name(cell)) if part)
        folder = job_folder(self.root, job_id).path
        own = {key: value for choice in cell if choice.key in template.grid for key, value in choice.sets.items()}
        values = {key: value for choice in cell for key, value in choice.sets.items()}
        settings = template.set | own
        if kind.config is PretrainConfig and variant is not None:
            settings = template.set | self.workflow.variants[variant] | own
        samples = Resolver(self, parents, samples=True)
        resolver = Resolver(self, parents, samples=False)
        config, steps, select, arguments = None, None, None, []
        if template.kind == "select":
            select = self.selection(settings)
        elif kind.config is not None:
            sample = self.config_tree(template, kind, substitute(settings, samples, final=True), folder)
            steps = total_steps(config_from_tree(PretrainConfig, sample)) if kind.config is PretrainConfig else None
            open_keys = {key: value for key, value in settings.items() if resolver.leaves_open(value)}
            config = escape(sample)
            merge(config, nested(substitute(open_keys, resolver, final=False)))
            arguments = [*kind.command, escape(str(folder / "config.yaml"))]
        else:
            if template.config is not None:
                raise UserError(f"config: a {template.kind} job takes no config")
            arguments = self.arguments(kind, settings, folder, samples, resolver)
        if template.resources.ranks > 1 and not kind.ranked:
            raise UserError(f"resources: a {template.kind} job is one process, not {template.resources.ranks}")
        files = self.fingerprint_files(kind, template, settings, samples)
        if template.kind == "select" and not any(parents.values()):
            raise UserError("needs: is empty: name the jobs to choose among")
        ids = tuple(job.id for group in parents.values() for job in group)
        unfilled = Job(
            id=job_id,
            name=template.name,
            kind=template.kind,
            variant=variant,
            cell=names,
            values=values,
            needs=ids,
            arguments=arguments,
            config=config,
            outputs=outputs(self.root, job_id, template.kind),
            files=files,
            steps=steps,
            select=select,
            resources=template.resources,
            key="",
        )
        job = dataclasses.replace(unfilled, key=self.key(unfilled))
        return dataclasses.replace(job, key=self.written_key(job) or job.key)

    def selection(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The metric of a `select` job, and whether the minimum or the maximum is best."""
        for key in settings:
            if key not in SELECT_OPTIONS:
                raise UserError(f"set: unknown key '{key}'{nearest(key, SELECT_OPTIONS)}")
        metric = settings.get("metric")
        if not isinstance(metric, str):
            raise UserError("set.metric: is not set: the validation metric that chooses, such as bleu or val_loss")
        mode = settings.get("mode", "min" if lower_is_better(metric.split(".")[-1]) else "max")
        if mode not in ("min", "max"):
            raise UserError(f"set.mode: '{mode}' is neither min nor max")
        return {"metric": metric, "mode": mode}

    def config_tree(self, template: Template, kind: Kind, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The resolved config of a training job, checked by the trainer's own types."""
        assert kind.config is not None
        tree: dict[str, Any] = {}
        if template.config is not None:
            tree = read_tree(config_beside(self.workflow.path, template.config))
        if "run_dir" in settings:
            raise UserError("set.run_dir: the launcher chooses where a job runs; refer to it as ${jobs.NAME.run_dir}")
        merge(tree, nested(settings))
        tree["run_dir"] = str(folder / RUN)
        resources = template.resources
        if tree.get("parallel") is None:
            tree["parallel"] = {}
        parallel = tree["parallel"]
        if not isinstance(parallel, dict):
            raise UserError(f"parallel: expected keys and values, got {parallel!r}")
        if resources.tensor is not None:
            if parallel.get("tensor", resources.tensor) != resources.tensor:
                raise UserError(
                    f"resources.tensor: {resources.tensor} contradicts parallel.tensor {parallel['tensor']}"
                )
            parallel["tensor"] = resources.tensor
        if self.ranks_from_launcher and resources.ranks > 1:
            tensor = ranks_of_tensor(parallel.get("tensor", 1))
            if resources.ranks % tensor:
                raise UserError(f"resources: {resources.ranks} ranks are not divisible by parallel.tensor {tensor}")
            parallel["data"] = resources.ranks // tensor
        elif self.ranks_from_launcher:
            parallel |= {"data": None}
        absolute_paths(tree, kind.files)
        if kind.config is PretrainConfig:
            return to_tree(config_from_tree(PretrainConfig, tree))
        config = config_from_tree(FinetuneConfig, tree)
        require_inputs(config)
        return to_tree(config)

    def arguments(
        self,
        kind: Kind,
        settings: dict[str, Any],
        folder: Path,
        samples: Resolver,
        resolver: Resolver,
    ) -> list[str]:
        """The words after ``spdf`` of a job without a config, checked by the command's parser; may have references."""
        if kind.fan_in == "all":
            kind = dataclasses.replace(kind, positional=("folder",))
            settings = settings | {"folder": str(self.root)}
        settings = {key: absolute(value) if key in kind.files else value for key, value in settings.items()}
        kinds.check_arguments(kinds.command_arguments(kind, substitute(settings, samples, final=True), folder))
        return kinds.command_arguments(kind, substitute(settings, resolver, final=False), Path(escape(str(folder))))

    def fingerprint_files(
        self, kind: Kind, template: Template, settings: dict[str, Any], samples: Resolver
    ) -> dict[str, str]:
        """Fingerprints of the input files that no job makes. Raises UserError if one is missing."""
        if template.config is not None:
            base = read_tree(config_beside(self.workflow.path, template.config))
            settings = flatten(base) | flatten(nested(settings))
        found = {}
        for key in kind.files:
            for value in paths_in(settings.get(key)):
                if any(parts[0] == "jobs" for parts in references(value)):
                    continue
                path = Path(absolute(substitute(value, samples, final=True)))
                if path not in self.fingerprints:
                    self.fingerprints[path] = self.fingerprint(path, key)
                found[str(path)] = self.fingerprints[path]
        return found

    def fingerprint(self, path: Path, key: str) -> str:
        """The fingerprint of one input. The path of Megatron data is the common prefix of two files."""
        pair = [Path(f"{path}.bin"), Path(f"{path}.idx")]
        try:
            if not path.exists() and all(part.is_file() for part in pair):
                return digest([fingerprint(part) for part in pair])
            return fingerprint(path)
        except OSError as error:
            raise UserError(f"{key}: {path}: {error.strerror or error}") from None

    def key(self, job: Job) -> str:
        """The digest of a job's inputs; it does not depend on the location of the workflow's folder.

        It leaves out exactly those config keys that a continued run may change. A job with another key starts from the
        beginning; a job with the same key can continue.
        """
        config = flatten(job.config) if job.config is not None else None
        if config is not None:
            config = {key: value for key, value in config.items() if not is_below(key, IDENTITY_EXEMPT)}
        parents = {need: self.jobs[need].key for need in job.needs}
        content = [job.kind, job.arguments, config, job.select, parents, job.files]
        return digest(replace_text(content, str(self.root), "${dir}"))

    def written_key(self, job: Job) -> str | None:
        """The key in the folder if an older version wrote the same job before the config had some of today's keys.

        The jobs are the same if each of these keys has its default today. None if the folder has no such job.
        """
        spec = read_json(job_folder(self.root, job.id).spec)
        if spec is None or job.config is None or not isinstance(spec.get("config"), dict):
            return None
        if spec.get("parents") != {need: self.jobs[need].key for need in job.needs}:
            return None
        kind = KINDS[job.kind].config
        assert kind is not None
        older, today = flatten(spec["config"]), flatten(job.config)
        added = {key: value for key, value in flatten(to_tree(kind())).items() if key in today and key not in older}
        try:
            written = job_from_json(spec | {"config": older | added})
            here = Path(job.outputs[RUN_DIR])
            root = written.outputs[RUN_DIR].removesuffix(f"/{here.relative_to(self.root)}")
            moved = replace_text(dataclasses.asdict(written), root, str(self.root))
            return written.key if self.key(job_from_json(moved)) == job.key else None
        except (AttributeError, KeyError, TypeError):  # not a job of this version
            return None


class Resolver:
    """Resolves the references of one job."""

    def __init__(self, expansion: Expansion, parents: dict[str, list[Job]], samples: bool) -> None:
        self.expansion = expansion
        self.parents = parents
        self.samples = samples

    def __call__(self, parts: tuple[str, ...]) -> str | None:
        if parts[0] == "env":
            name = ".".join(parts[1:])
            if name not in os.environ:
                raise UserError(f"${{env.{name}}}: the environment variable {name} is not set")
            return os.environ[name]
        template = self.expansion.workflow.jobs[parts[1]]
        jobs = self.parents[parts[1]]
        if len(jobs) != 1:
            raise UserError(
                f"${{{'.'.join(parts)}}}: '{parts[1]}' is {len(jobs)} jobs here: choose one with a select job"
            )
        if template.kind == "select" and parts[2] not in jobs[0].outputs:
            return self.chosen(jobs[0], parts)
        if parts[2] == "grid":
            return grid_value(jobs[0], parts)
        if len(parts) != 3 or parts[2] not in jobs[0].outputs:
            raise UserError(
                f"${{{'.'.join(parts)}}}: a {template.kind} job has no output '{'.'.join(parts[2:])}'"
                f"{nearest(parts[2], jobs[0].outputs)}"
            )
        return jobs[0].outputs[parts[2]]

    def chosen(self, select: Job, parts: tuple[str, ...]) -> str | None:
        """A reference to the choice of a `select` job: None (open), or with ``samples`` that of the first candidate."""
        jobs = self.expansion.jobs
        candidates = [jobs[need] for need in select.needs]
        wanted = ".".join(parts[3:])
        if parts[2] == "grid":
            value = grid_value(candidates[0], parts)
            return value if self.samples else None
        ancestors = {job.name: job for job in ancestry(candidates[0], jobs)}
        if parts[2] not in ancestors or wanted not in ancestors[parts[2]].outputs:
            known = [f"{name}.{output}" for name, job in ancestors.items() for output in job.outputs]
            raise UserError(f"${{{'.'.join(parts)}}}: unknown{nearest('.'.join(parts[2:]), known)}")
        return ancestors[parts[2]].outputs[wanted] if self.samples else None

    def leaves_open(self, value: Any) -> bool:
        """Whether ``value`` has a reference that only a finished `select` resolves."""
        return any(self(parts) is None for parts in references(value))


def grid_value(job: Job, parts: tuple[str, ...]) -> str:
    """The value that a job's cell gives to a key, for the reference ``parts``. Raises UserError for another key."""
    wanted = ".".join(parts[3:])
    if wanted not in job.values:
        raise UserError(f"${{{'.'.join(parts)}}}: no grid key '{wanted}'{nearest(wanted, job.values)}")
    return str(job.values[wanted])


def ancestry(job: Job, jobs: dict[str, Job]) -> Iterator[Job]:
    """A job and all jobs that it needs, directly or indirectly; a job may occur several times."""
    yield job
    for need in job.needs:
        yield from ancestry(jobs[need], jobs)


def ranks_of_tensor(value: Any) -> int:
    """A value of parallel.tensor as an integer; it may be text from the environment."""
    if not re.fullmatch(r"0*[1-9][0-9]*", str(value)):
        raise UserError(f"parallel.tensor: must be a whole number, 1 or more, got {value!r}")
    return int(value)


def choices(key: str, values: list[Any], where: str) -> list[Choice]:
    """The values of one grid key: plain values, or ``{name, set}`` for several keys that vary together."""
    found = []
    for value in values:
        if isinstance(value, dict):
            if set(value) != {"name", "set"} or not isinstance(value["set"], dict):
                raise UserError(f"{where}: expected a value, or {{name: ..., set: {{key: value}}}}, got {value!r}")
            found.append(Choice(key, value_name(value["name"]), flatten(nested(value["set"]))))
        else:
            found.append(Choice(key, value_name(value), {key: value}))
    if len({choice.name for choice in found}) != len(found):
        raise UserError(f"{where}: a value is given twice")
    return found


def value_name(value: Any) -> str:
    """A value as part of a file name: numbers in a normal form; a short digest follows text that was changed."""
    text = str(value)
    try:
        return f"{float(text.replace('_', '')):.12g}" if not isinstance(value, bool) else text
    except ValueError:
        pass
    safe = re.sub(r"[^A-Za-z0-9_.+-]", "-", text)[:40]
    if safe != text or not safe.strip("."):
        return f"{safe.strip('.') or 'value'}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return safe


def cell_name(cell: tuple[Choice, ...]) -> str:
    """A cell's folder name, such as ``lr=0.0001,seed=1``; keys are shortened to their last part if that is unique."""
    last = [choice.key.rpartition(".")[2] for choice in cell]
    return ",".join(
        f"{short if last.count(short) == 1 else choice.key}={choice.name}"
        for short, choice in zip(last, cell, strict=True)
    )


def paths_in(value: Any) -> list[str]:
    """The paths in a value of `set`: a text, a list, or entries with a path."""
    if value is None or value == "":
        return []
    if isinstance(value, dict):
        return paths_in(value.get("path"))
    if isinstance(value, list):
        return [path for item in value for path in paths_in(item)]
    return [str(value)]


def absolute(value: Any) -> Any:
    """``value`` with paths made absolute relative to the current folder; references are not changed."""
    if isinstance(value, list):
        return [absolute(item) for item in value]
    if isinstance(value, dict):
        return {key: absolute(item) if key == "path" else item for key, item in value.items()}
    if isinstance(value, str) and value and not value.startswith("${"):
        return str(Path(written_path(value, "the workflow")).absolute())
    return value


def absolute_paths(tree: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Make the values of path keys absolute, in place."""
    for key in keys:
        *sections, leaf = key.split(".")
        section: Any = tree
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and leaf in section:
            section[leaf] = absolute(section[leaf])


def replace_text(value: Any, old: str, new: str) -> Any:
    """``value`` with ``old`` replaced by ``new`` in all texts."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list | tuple):
        return [replace_text(item, old, new) for item in value]
    if isinstance(value, dict):
        return {replace_text(key, old, new): replace_text(item, old, new) for key, item in value.items()}
    return value
