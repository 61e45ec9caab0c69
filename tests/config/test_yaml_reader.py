"""Any YAML content is read, or refused in one line, fast and with little memory."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from spdf_launcher.workflow import load_workflow

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import find_config, load_config, read_tree
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.config.yaml_reader import LARGEST_FILE, read_yaml, read_yaml_file

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{letter}: &{letter} [{', '.join(['*' + before] * 9)}]\n"
    for before, letter in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{letter}: &{letter} {{<<: [{', '.join(['*' + before] * 9)}]}}\n"
    for before, letter in zip("abcdefghi", "bcdefghij", strict=True)
)
BOMBS = {
    "aliases": LAUGHS,
    "merge keys": MERGES,
    "levels": "[" * 1200 + "]" * 1200,
    "levels of blocks": "".join(f"{' ' * n}a:\n" for n in range(300)),
    "levels of keys": "? " * 1200 + "a",
    "an alias inside itself": "a: &a [*a]",
    "a chain of aliases": "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1200)),
    "digits": "seed: " + "9" * 5000,
    "tags": "a: !!bool maybe",
    "a time": "a: !!timestamp soon",
    "an empty number": "a: !!int ''",
    "code": "a: !!python/object/apply:os.system [ls]",
    "an unhashable key": "{[a]: 1}",
    "no text": "a: \x00",
    "two documents": "a: 1\n---\nb: 2",
}


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("load", [lambda path: load_config(PretrainConfig, path), load_workflow])
def test_bombs_are_refused_at_once(name: str, load, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "config.yaml"
    path.write_text(BOMBS[name])
    before, began = memory(), time.monotonic()
    with pytest.raises(UserError, match=r"config\.yaml|seed") as raised:
        load(str(path))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 800
    assert time.monotonic() - began < 5 and memory() - before < 50_000


@pytest.mark.parametrize("content", [b"\xff\xfea\0:\0", b"a: \xff", b"a: 1\n" * (LARGEST_FILE // 4)])
def test_other_encodings_and_huge_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml: (is not UTF-8|more than 1024 KiB)"):
        read_yaml_file(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="is not a file"):
        read_yaml_file(Path("/dev/zero"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xef\xbb\xbfseed: 7")
    assert read_tree(tmp_path / "config.yaml") == {"seed": 7}


def test_what_an_alias_stands_for_is_changed_alone(tmp_path: Path) -> None:
    tree = read_yaml("a: &m {x: 1}\nb: *m")
    tree["a"]["x"] = 2
    assert tree["b"] == {"x": 1}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.num_layers=1e308", "is too large"),
        ("model.num_layers=1000000000", "model.num_layers: 1000000000 is too large"),
        ("model.hidden_size=9223372036854775807", "too large"),
        ("model.vocab_size=1e18", "too large"),
        ("training.train_tokens=1e300", "too large"),
        ("parallel.tensor=1e9", "ranks are too many"),
        ("training.global_batch_size=inf", "expected a whole number"),
        ("seed=" + "9" * 5000, "seed"),
        ("a" + ".a" * 3000 + "=1", "levels"),
        ("data.train=" + "x" * 200_000, "too many"),
    ],
)
def test_values_that_no_size_can_have(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        load_config(PretrainConfig, "gpt2_small", [override])
    assert len(str(raised.value)) < 300


def test_a_grid_is_counted_before_it_is_made(tmp_path: Path) -> None:
    axes = ", ".join(f"a{n}: [{', '.join(map(str, range(100)))}]" for n in range(6))
    (tmp_path / "w.yaml").write_text(f"jobs: {{x: {{kind: pretrain, config: gpt2_small, grid: {{{axes}}}}}}}")
    with pytest.raises(UserError, match="1,000,000,000,000 cells"):
        load_workflow(str(tmp_path / "w.yaml"))


def test_a_chain_of_base_files_ends(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"c{number}.yaml").write_text(f"base: c{number + 1}.yaml")
    for load in (lambda path: load_config(PretrainConfig, path), load_workflow):
        with pytest.raises(UserError, match="a chain of more than"):
            load(str(tmp_path / "c0.yaml"))


@pytest.mark.parametrize("seed", range(4))
def test_configs_with_random_changes_load_or_are_refused_in_a_line(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    originals = [
        find_config(name).read_bytes() for name in ("gpt2_small_s75", "workflows/trial_10m", "finetune/gpt3_xl_e2e")
    ]
    signs = [
        b"&a ",
        b"*a ",
        b"!!int ",
        b"{",
        b"[",
        b"- ",
        b"? ",
        b": ",
        b"1e308",
        b"\xff",
        b"\0",
        b"\n",
        b"\t",
        b"|",
        b"~",
    ]
    path = tmp_path / "fuzzed.yaml"
    for _ in range(60):
        content = bytearray(rng.choice(originals))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(content))
            choice = rng.random()
            if choice < 0.4:
                content[at] ^= 1 << rng.randrange(8)
            elif choice < 0.7:
                content[at:at] = rng.choice(signs)
            else:
                del content[at : at + rng.randrange(1, 40)]
        path.write_bytes(content)
        for load in (lambda source: load_config(PretrainConfig, source), load_workflow):
            try:
                load(str(path))
            except UserError as error:
                assert "\n" not in str(error), content


def test_the_loader_reads_what_yaml_writes() -> None:
    tree = {"a": [1, 2.5, 1e-5, "2:4", "010", "2024-01-02", None, True, "~", ""], "b": {"c": "x\ny"}}
    assert read_yaml(yaml.safe_dump(tree)) == tree


def test_the_command_names_the_file_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(LAUGHS)
    command = [sys.executable, "-m", "spdf_dist", "pretrain", str(tmp_path / "bomb.yaml"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "bomb.yaml" in done.stderr
