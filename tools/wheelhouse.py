"""Builds the wheels of this tree, or collects every wheel that a cluster without internet needs.

  make wheels
  python tools/wheelhouse.py --own --out dist [--machine aarch64]

builds spdf-dist and spdf-kernels, for x86-64 and aarch64. The wheels of another processor than this machine's need a
cross compiler: aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu) or x86_64-linux-gnu-g++.

  make wheelhouse TARGET_PYTHON=3.12 MACHINE=x86_64 EXTRAS=all,gpu
  python tools/wheelhouse.py --out wheelhouse --python 3.12 --machine aarch64 [-- OPTIONS OF PIP DOWNLOAD]

On the cluster:  pip install --no-index --find-links wheelhouse 'spdf-dist[all]'

The versions are those of constraints.txt. Where the index has a source distribution only (DeepSpeed), a wheel is made
of it. torch is the build that pip finds: for another CUDA name its index, such as -- --extra-index-url URL. pip
evaluates the conditions of requirements ("; python_version < ...") for the Python that runs this script.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINES = ("x86_64", "aarch64")
GLIBC = range(17, 40)
"""Minor versions of glibc 2 that a manylinux wheel may ask for; pip takes those that are named."""
MAX_SOURCES = 40


class WheelhouseError(Exception):
    """What is missing and what to do; printed as one line."""


def pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs pip; its progress is left out."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def cross_compiler(machine: str) -> str | None:
    """The compiler that the build of the kernels needs for another processor, where it is not installed."""
    name = f"{machine}-linux-gnu-g++"
    return None if machine == platform.machine() or shutil.which(name) else name


def build(project: Path, out: Path, machine: str) -> None:
    """Builds the wheel of a project of this tree into ``out``. Raises WheelhouseError."""
    os.environ["SPDF_TARGET_MACHINE"] = machine
    done = pip("wheel", "--no-deps", "--wheel-dir", out, project)
    if done.returncode:
        raise WheelhouseError(f"the wheel of {project} does not build: {last_line(done.stderr)}")


def build_own(out: Path, machines: Sequence[str]) -> None:
    """Builds the wheels of spdf-dist and spdf-kernels for some processors. Raises WheelhouseError."""
    for machine in machines:
        if missing := cross_compiler(machine):
            raise WheelhouseError(
                f"{missing} is needed for {machine} (Debian: g++-{machine.replace('_', '-')}-linux-gnu)"
            )
    for machine in machines:
        for project in (ROOT, ROOT / "kernels"):
            build(project, out, machine)


def platforms(machine: str, newest_glibc: int) -> list[str]:
    """Platform tags that a Linux of this processor with glibc 2.``newest_glibc`` takes."""
    legacy = ["manylinux2014", "manylinux2010", "manylinux1"] if machine == "x86_64" else ["manylinux2014"]
    newer = [f"manylinux_2_{minor}" for minor in GLIBC if minor <= newest_glibc]
    return [f"{tag}_{machine}" for tag in (*newer, *legacy, "linux")]


def last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def without_wheel(text: str) -> str | None:
    """The requirement that pip's words name as having no wheel; None where they name none."""
    missing = re.search(r"no matching distributions available for your environment:\s+([A-Za-z0-9._-]+)", text)
    pinned = re.search(r"depends on ([A-Za-z0-9._-]+)[^\n]*\n\s+The user requested \(constraint\) (\1==\S+)", text)
    if pinned:
        return pinned[2]
    absent = re.search(r"No matching distribution found for ([A-Za-z0-9._-]+(?:==[^\s;,()]+)?)", text)
    found = absent or missing
    return found[1] if found else None


def own_wheel(out: Path, machine: str) -> None:
    """Builds the wheel of this tree into ``out``; its library fits one kind of processor."""
    missing = cross_compiler(machine)
    if missing is None:
        build(ROOT, out, machine)
    elif not list(out.glob(f"spdf_dist-*-linux_{machine}.whl")):
        raise WheelhouseError(
            f"the kernels must be compiled for {machine}: install {missing}, or run `make wheels` elsewhere and put "
            f"the wheel into {out}"
        )


def from_source(requirement: str, out: Path) -> None:
    """Makes the wheel of a package that the index has as source only; it must fit every processor."""
    before = set(out.glob("*.whl"))
    done = pip("wheel", "--no-deps", "--constraint", ROOT / "constraints.txt", "--wheel-dir", out, requirement)
    if done.returncode:
        raise WheelhouseError(f"{requirement} has no wheel, and none can be made: {last_line(done.stderr)}")
    for wheel in set(out.glob("*.whl")) - before:
        if not wheel.name.endswith("-none-any.whl"):
            wheel.unlink()
            raise WheelhouseError(f"{requirement} has no wheel for the target, and {wheel.name} fits this machine only")


def collect(out: Path, python: str, machine: str, extras: str, newest_glibc: int, options: Sequence[str]) -> int:
    """Fills ``out``; returns the number of wheels. Raises WheelhouseError."""
    out.mkdir(parents=True, exist_ok=True)
    own_wheel(out, machine)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    wanted = f"spdf-dist[{extras}]=={version}" if extras else f"spdf-dist=={version}"
    target = ["--only-binary", ":all:", "--constraint", ROOT / "constraints.txt", "--python-version", python]
    target += [word for tag in platforms(machine, newest_glibc) for word in ("--platform", tag)]
    made: list[str] = []
    while True:
        done = pip("download", "--dest", out, "--find-links", out, *target, *options, wanted)
        if done.returncode == 0:
            return len(list(out.glob("*.whl")))
        name = without_wheel(done.stdout + done.stderr)
        if name is None or name in made or len(made) == MAX_SOURCES:
            raise WheelhouseError(f"pip download: {last_line(done.stderr)}")
        print(f"{name}: no wheel for the target; making one from its source", flush=True)
        from_source(name, out)
        made.append(name)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "wheelhouse", help="folder for the wheels (wheelhouse)")
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="of the cluster: 3.12")
    parser.add_argument("--own", action="store_true", help="only build the wheels of this tree")
    parser.add_argument("--machine", choices=MACHINES, help="default: this one; with --own, each")
    parser.add_argument("--extras", default="all", help="comma-separated extras of spdf-dist (all)")
    parser.add_argument("--glibc", type=int, default=28, metavar="MINOR", help="2.MINOR is the cluster's glibc (28)")
    args = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    if not re.fullmatch(r"3\.\d+", args.python):
        parser.error(f"--python is a version such as 3.12, not {args.python}")
    try:
        if args.own:
            build_own(args.out.absolute(), [args.machine] if args.machine else MACHINES)
            print(*sorted(path.name for path in args.out.glob("spdf_*.whl")), sep="\n")
            return 0
        machine = args.machine or platform.machine()
        count = collect(args.out.absolute(), args.python, machine, args.extras, args.glibc, options)
    except WheelhouseError as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        return 2
    print(f"{count} wheels for Python {args.python} on {machine} in {args.out}; on the cluster:")
    print(f"  pip install --no-index --find-links {args.out.name} 'spdf-dist[{args.extras}]'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
