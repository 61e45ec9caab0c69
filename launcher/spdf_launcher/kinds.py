"""The kinds of jobs: the ``spdf`` command of each, its inputs and its outputs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from spdf_dist.cli.main import entry_points
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig
from spdf_dist.workflow_folder import CHOICE, OUT, RUN


@dataclass(frozen=True)
class Kind:
    """One kind of job. Paths in ``makes`` and ``outputs`` are relative to the job's folder."""

    command: tuple[str, ...]
    """Words after ``spdf``; empty: the launcher does the work."""
    config: type[PretrainConfig] | type[FinetuneConfig] | None = None
    """The config that the command reads: `set` and `grid` hold its keys. None: they hold options of the command."""
    positional: tuple[str, ...] = ()
    """Keys of `set` that are positional arguments, before the options."""
    output_args: Mapping[str, str] = field(default_factory=dict)
    """Output options and their paths; an empty name is a further positional argument."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Names for ${jobs.NAME.OUTPUT}."""
    files: tuple[str, ...] = ()
    """Keys of `set` that name files or folders to read."""
    captured: str | None = None
    """The file for standard output; the command is then called with --json."""
    success_file: str | None = None
    """If this file exists, exit code 1 is a success with a remark, such as broken input lines or a null metric."""
    ranked: bool = False
    """Whether the job may run as several ranks."""
    fan_in: str = ""
    """`cells`: one job for all cells of the jobs it needs, failed ones included. `all`: also for all variants."""

    @property
    def continues(self) -> bool:
        """Whether a second start continues from a checkpoint. Other jobs start from the beginning."""
        return self.config is not None


KINDS: dict[str, Kind] = {
    "python-text": Kind(
        ("data", "python-text"),
        output_args={"out": "out/train.jsonl", "validation": "out/validation.jsonl"},
        outputs={"train": "out/train.jsonl", "validation": "out/validation.jsonl"},
    ),
    "synthetic-e2e": Kind(
        ("data", "synthetic-e2e"),
        output_args={"out": OUT},
        outputs={"train": "out/trainset.csv", "validation": "out/devset.csv", "test": "out/testset_w_refs.csv"},
    ),
    "tokenizer": Kind(
        ("data", "tokenizer", "train"),
        output_args={"out": "out/tokenizer.model"},
        outputs={"model": "out/tokenizer.model"},
        files=("input",),
        success_file="out/tokenizer.model",
    ),
    "pack": Kind(
        ("data", "pack"),
        output_args={"out": OUT},
        outputs={"dir": OUT},
        files=("input", "tokenizer"),
        success_file="out/index.json",
        ranked=True,
    ),
    "pretrain": Kind(
        ("pretrain",),
        config=PretrainConfig,
        outputs={"run_dir": RUN},
        files=("data.train", "data.validation", "data.tokenizer", "training.init_from", "deepspeed"),
        ranked=True,
    ),
    "import-hf": Kind(
        ("import-hf",),
        positional=("dir",),
        output_args={"": "out/checkpoint"},
        outputs={"checkpoint": "out/checkpoint"},
        files=("dir",),
    ),
    "densify": Kind(
        ("densify",),
        positional=("checkpoint",),
        output_args={"": "out/dense"},
        outputs={"checkpoint": "out/dense"},
        files=("checkpoint",),
    ),
    "finetune": Kind(
        ("finetune",),
        config=FinetuneConfig,
        outputs={"run_dir": RUN},
        files=("finetune.checkpoint", "finetune.train", "finetune.validation", "deepspeed"),
        ranked=True,
    ),
    "generate": Kind(
        ("generate",),
        positional=("checkpoint",),
        output_args={"out": "out/hypotheses.txt", "references-out": "out/references.txt"},
        outputs={"hypotheses": "out/hypotheses.txt", "references": "out/references.txt"},
        files=("checkpoint", "input"),
    ),
    "evaluate": Kind(
        ("evaluate",),
        outputs={"scores": "out/scores.json"},
        files=("hypotheses", "references", "slots-of"),
        captured="out/scores.json",
        success_file="out/scores.json",
    ),
    "perplexity": Kind(
        ("perplexity",),
        positional=("checkpoint",),
        outputs={"scores": "out/perplexity.json"},
        files=("checkpoint", "data"),
        captured="out/perplexity.json",
        success_file="out/perplexity.json",
    ),
    "eval": Kind(
        ("eval",),
        positional=("checkpoint",),
        outputs={"scores": "out/eval.json"},
        files=("checkpoint", "include-path"),
        captured="out/eval.json",
        success_file="out/eval.json",
    ),
    "select": Kind((), outputs={"choice": CHOICE}, fan_in="cells"),
    "report": Kind(("report",), output_args={"out": OUT}, outputs={"dir": OUT, "html": "out/index.html"}, fan_in="all"),
}


def option_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as command-line options: a list is several words, true a flag; false and null are left out."""
    arguments: list[str] = []
    for key, value in settings.items():
        if value is False or value is None:
            continue
        arguments.append(f"--{key}")
        if value is not True:
            arguments += [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return arguments


def command_arguments(kind: Kind, settings: Mapping[str, Any], folder: Path) -> list[str]:
    """The words after ``spdf`` for a job without a config.

    Raises:
        UserError: a positional argument is missing, or ``settings`` has an output option.
    """
    for key in kind.output_args:
        if key in settings:
            raise UserError(f"set.{key}: the launcher chooses where a job writes; refer to it as ${{jobs.NAME.OUTPUT}}")
    arguments = list(kind.command)
    for key in kind.positional:
        if key not in settings:
            raise UserError(f"set.{key}: is not set")
        value = settings[key]
        arguments += [str(item) for item in value] if isinstance(value, list) else [str(value)]
    arguments += [str(folder / path) for key, path in kind.output_args.items() if not key]
    options = {key: value for key, value in settings.items() if key not in kind.positional}
    options |= {key: str(folder / path) for key, path in kind.output_args.items() if key}
    if kind.captured:
        options["json"] = True
    return arguments + option_arguments(options)


class SpeakingParser(argparse.ArgumentParser):
    """argparse that raises UserError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def check_arguments(arguments: list[str]) -> None:
    """Parse ``arguments`` (without ``spdf``) with the command's own parser. Raises UserError if it refuses them."""
    name, *rest = arguments
    module = entry_points()[name].load()
    parser = SpeakingParser(prog=f"spdf {name}", allow_abbrev=False)
    module.configure(parser)
    parser.parse_args(rest)
