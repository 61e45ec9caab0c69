"""Commands, config keys and files in the documentation exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from spdf_dist.cli.main import build_parser, entry_points
from spdf_dist.config.load import flatten, to_tree
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md", *sorted(DOCS.glob("*.md"))]
FOLDERS = ("tests", "spdf_dist", "kernels", "launcher", "configs", "slurm", "docs", "tools")
FILE = re.compile(rf"\b(?:{'|'.join(FOLDERS)})/[\w/.-]+\.(?:py|md|cpp|hpp|yaml|sh|ipynb)\b")
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "bash", "sh")
SETTING = re.compile(
    r"`((?:training|parallel|checkpoint|validation|sparsity|data|kernels|model)\.[a-z_.]+)(?:=[^`]*)?`"
)
FREE = ("callbacks", "deepspeed", "clusters", "jobs", "variants")
"""Sections with keys of the user's own."""


def commands(page: Path) -> Iterator[list[str]]:
    """The `spdf` commands in a page's shell blocks, without comments, redirections and placeholders such as [JOB]."""
    for language, block in FENCED.findall(page.read_text(encoding="utf-8")):
        if language not in SHELLS:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if "spdf" not in line or "..." in line or "[" in line.split("#")[0]:
                continue
            words = shlex.split(line, comments=True)
            starts = [index for index, word in enumerate(words) if word == "spdf" or word.endswith("/spdf")]
            modules = [index + 1 for index, word in enumerate(words) if word in ("-m", "--module")]
            starts += [index for index in modules if words[index : index + 1] == ["spdf_dist"]]
            if starts and not {"|", "&&", ">", "<"} & set(words) and starts[0] + 1 < len(words):
                yield words[starts[0] + 1 :]


def found() -> list[tuple[str, list[str]]]:
    """Every command, with its page. The architecture's list of commands explains them on the same line."""
    pages = [page for page in PAGES if page.name != "architecture.md"]
    return [(page.name, words) for page in pages for words in commands(page)]


def test_the_pages_have_commands() -> None:
    pages = {page for page, _ in found()}
    assert {"cluster.md", "data.md", "workflows.md"} <= pages and len(found()) > 20


@pytest.mark.parametrize(("page", "words"), found(), ids=lambda value: " ".join(value)[:60])
def test_a_command_is_accepted(page: str, words: list[str]) -> None:
    points = entry_points()
    if words[0].startswith("-") or words[0].isupper():
        return
    assert words[0] in points, f"{page}: spdf has no command {words[0]}"
    parser = build_parser(words[0], points[words[0]].load())
    parse = parser.parse_args if parser._subparsers else parser.parse_intermixed_args
    arguments = parse(words[1:])  # exits for a wrong option
    known = {**flatten(to_tree(PretrainConfig())), **flatten(to_tree(FinetuneConfig()))}
    if words[0] in ("pretrain", "finetune"):
        for override in arguments.overrides:
            key = override.partition("=")[0]
            assert key in known or key.split(".")[0] in FREE, f"{page}: no such key: {key}"


@pytest.mark.parametrize("page", ["cluster.md", "steering.md", "reliability.md"])
def test_config_keys_exist(page: str) -> None:
    known = {**flatten(to_tree(PretrainConfig())), **flatten(to_tree(FinetuneConfig()))}
    sections = {key.rpartition(".")[0] for key in known}
    keys = {match.rstrip(".") for match in SETTING.findall((DOCS / page).read_text(encoding="utf-8"))}
    keys.discard("data.json")  # a file
    assert keys <= known.keys() | sections, keys - known.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page: Path) -> None:
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
