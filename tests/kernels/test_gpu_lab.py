"""The GPU lab goes on after a part that fails, crashes, hangs or spoils the GPU, and draws what it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))

from gpu_lab import pack, report, run, steps

LIMIT = 30.0


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu_lab.jsonl").read_text().splitlines()]


def these_parts(monkeypatch: pytest.MonkeyPatch, **actions: Callable[[], object]) -> None:
    made = {name: run.Part(LIMIT, action) for name, action in actions.items()}
    monkeypatch.setattr(run, "parts", lambda bench, record: made)


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    these_parts(monkeypatch, first=lambda: 1 / 0, second=lambda: ran.append("second"))
    monkeypatch.setattr(run, "gpu_is_sound", lambda bench: True)
    assert run.work(tmp_path, 60, True, ["first", "second"]) == 0
    lines = lines_of(tmp_path)
    assert ran == ["second"] and "ZeroDivisionError" in lines[1]["error"]
    assert [line["finished"] for line in lines if "finished" in line] == ["first", "second"]


def test_a_part_without_time_is_skipped_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    these_parts(monkeypatch, first=lambda: 1 / 0)
    assert run.work(tmp_path, 0, True, ["first"]) == 0
    assert [line["skipped"] for line in lines_of(tmp_path)] == ["first"]


def test_a_gpu_in_a_state_of_error_needs_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    these_parts(monkeypatch, first=lambda: None, second=lambda: None)
    monkeypatch.setattr(run, "gpu_is_sound", lambda bench: False)
    assert run.work(tmp_path, 60, True, ["first", "second"]) == run.FRESH
    assert [line["finished"] for line in lines_of(tmp_path) if "finished" in line] == ["first"]


def test_parts_that_crash_or_hang_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker runs the first part of its list: it crashes, hangs, spoils the GPU, or ends well."""
    these_parts(monkeypatch, **dict.fromkeys(("crash", "hang", "spoil", "well"), lambda: None))
    monkeypatch.setattr(run, "GRACE", 0.5)
    monkeypatch.setattr(run.products, "can_run", lambda: None)
    started: list[list[str]] = []
    real = subprocess.Popen

    def worker(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        names = command[command.index("--parts") + 1 :]
        started.append(names)
        begin = json.dumps({"part": "clock", "begun": names[0], "limit": 0.1})
        end = json.dumps({"part": "clock", "finished": names[0]})
        then = {"crash": "kill -SEGV $$", "hang": "sleep 60", "spoil": f"echo '{end}' >> $1; exit 75"}
        script = f"echo '{begin}' >> $1; {then.get(names[0], f'''echo '{end}' >> $1''')}"
        return real(["sh", "-c", script, "sh", str(tmp_path / "gpu_lab.jsonl")], **options)

    monkeypatch.setattr(run.subprocess, "Popen", worker)
    began = time.monotonic()
    assert run.run_lab(tmp_path, 60, True, None) == 1
    assert time.monotonic() - began < LIMIT
    assert [names[0] for names in started] == ["crash", "hang", "spoil", "well"]
    errors = {line["part"]: line["error"] for line in lines_of(tmp_path) if "error" in line}
    assert errors == {"crash": "the process ended with -11", "hang": "stopped after 1 s"}
    assert "stopped after 1 s" in (tmp_path / "gpu_lab.md").read_text()


@pytest.mark.parametrize(("last", "minutes"), [("losses", 4.5), ("real run", 8.0)])
def test_the_most_valuable_parts_fit_into_the_time(last: str, minutes: float) -> None:
    made = run.parts(run.Bench(run.torch.device("cpu"), 0, False), run.Record(Path(os.devnull), 0))
    names = list(made)
    most_valuable = names[: names.index(last) + 1]
    assert sum(made[name].seconds for name in most_valuable) <= 60 * minutes - run.RESERVE
    assert names.index("xl steps") < names.index("small steps") < names.index("real run")


def test_tests_that_take_too_long_leave_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run.Record(tmp_path / "gpu_lab.jsonl", 60)
    seen = b"tests/gpu/a.py::test_a PASSED\n[gw0] FAILED tests/gpu/a.py::test_b\n"

    def stopped(*arguments: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("pytest", 30, output=seen)

    monkeypatch.setattr(run.subprocess, "run", stopped)
    run.gpu_tests(record, False)
    line = record.lines[-1]
    assert line["exit_code"] == 1 and "1 passed, 1 failed" in line["summary"] and "test_b" in line["failed"][0]


def test_kernels_are_told_apart_by_name() -> None:
    kernels = {
        "nvjet_tst_128x256": 5.0,
        "spmm_box": 1.0,
        "add_norm_backward": 1.5,
        "rotary": 0.5,
        "cudnn_generated_fort_native_sdpa": 3.0,
        "multi_tensor_apply_kernel<FusedAdam>": 4.0,
        "cross_entropy": 6.0,
        "vectorized_elementwise_kernel": 7.0,
    }
    assert steps.by_group(kernels) == {
        "products": 6.0,
        "fused norms and activations": 2.0,
        "attention": 3.0,
        "optimizer": 4.0,
        "loss": 6.0,
        "elementwise": 7.0,
    }


def test_the_figure_has_the_limit_by_flops(tmp_path: Path) -> None:
    dense = {"part": "step", "model": "xl", "kind": "dense unstructured", "level": 0.0, "fused": True, "ms": 100.0}
    block = dense | {"kind": "compressed balanced:128", "level": 0.75, "ms": 55.0}
    made = [dense | {"flops": 8.0}, dense | {"flops": 8.0, "fused": False, "ms": 120.0}, block | {"flops": 4.0}]
    assert report.limit(made) == [(0.0, 100.0), (0.75, 50.0)]
    assert report.by_kind(made) == {"compressed balanced:128": [(0.0, 100.0), (0.75, 55.0)]}
    losses = [{"part": "run", "execution": "dense", "step": 20, "loss": 5.0, "tokens_per_s": 1e5}]
    assert report.draw(made + losses, tmp_path / "figure.svg") and (tmp_path / "figure.svg").stat().st_size > 1000
    assert not report.draw([], tmp_path / "nothing.svg")


MODULES = (
    *("gpu_lab.layers", "gpu_lab.products", "gpu_lab.run", "gpu_lab.steps", "pytest", "torch.utils.tensorboard"),
    *("spdf_dist.evaluation.generation", "spdf_dist.training.finetune", "spdf_dist.training.pretrain"),
)


def test_the_lab_needs_no_package_that_the_pack_lacks(tmp_path: Path) -> None:
    """A Python without site-packages, but links to the packages of the pack and of a machine with a GPU."""
    for name in {*pack.carried(), *pack.required(pack.PRESENT)}:
        package = metadata.distribution(name)
        for entry in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            (tmp_path / entry).symlink_to(str(package.locate_file(entry)))
    assert (tmp_path / "deepspeed").exists() and not (tmp_path / "transformers").exists()
    root = Path(__file__).parents[2]
    path = (root, root / "kernels", root / "launcher", tmp_path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", "; ".join(f"import {name}" for name in MODULES)],
        env=os.environ | {"PYTHONPATH": ":".join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
