import json
from pathlib import Path

from spdf_launcher.progress import Progress, read_progress


def write(run: Path, *lines: str) -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("\n".join(lines))


def step(number: int, ms: float, **more: object) -> str:
    return json.dumps({"step": number, "step_ms": ms, "consumed_tokens": 10 * number, "loss": 2.0, **more})


def test_time_left_follows_the_usual_step(tmp_path: Path) -> None:
    write(tmp_path / "run", step(1, 100), step(2, 100), step(3, 60_000))
    assert read_progress(tmp_path / "run", 13) == Progress(3, 13, 30, 2.0, 1.0)
    write(tmp_path / "run", step(1, 100, total_steps=5))
    assert read_progress(tmp_path / "run", None) == Progress(1, 5, 10, 2.0, 0.4)
    assert read_progress(tmp_path / "run", 99) == Progress(1, 5, 10, 2.0, 0.4)


def test_a_validation_or_half_a_line_at_the_end_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path / "run", step(4, 100), '{"step": 4, "val_loss": 3.0}', '{"step": 5, "lo')
    assert read_progress(tmp_path / "run", None) == Progress(4, None, 40, 2.0, None)
    assert Progress(4, 8, 40_000, 2.0, 61.0).text() == "step 4/8  40.0K tokens  loss 2.000  ETA 1:01"


def test_nothing_yet(tmp_path: Path) -> None:
    assert read_progress(tmp_path, 5) is None
    write(tmp_path / "run", "")
    assert read_progress(tmp_path / "run", 5) is None
