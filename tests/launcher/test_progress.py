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
    assert Progress(4, 8, 40_000, 2.0, 61.0).text() == "step 4/8  40k tokens  loss 2.000  ETA 1:01"


def test_every_reader_of_the_metrics_ignores_lines_of_other_kinds(tmp_path: Path) -> None:
    """A step, its validation, the values of a callback, and a kind that does not exist."""
    from chaos.campaign import result_of

    from spdf_dist.report.runs import read_metrics
    from spdf_dist.training.run_folder import RunFolder

    run = tmp_path / "run"
    others = ['{"step": 4, "metrics": {"loss": 9.0, "norms/embedding": 1.5}}', '{"step": 4, "later": [1]}']
    lines = [step(3, 100), others[0], step(4, 100), '{"step": 4, "val_loss": 3.0}', *others]
    write(run, *lines, "")
    assert read_progress(run, 8) == Progress(4, 8, 40, 2.0, 0.4)
    assert RunFolder(run).last_logged_step() == 4

    curve, validation, _ = read_metrics(run / "metrics.jsonl")
    assert list(curve.step) == [3, 4] and list(curve.loss) == [2.0, 2.0]
    assert dict(validation) == {4: 3.0}

    (run / "checkpoints/step_4").mkdir(parents=True)
    (run / "checkpoints/step_4/manifest.json").write_text('{"files": {}}')
    assert [numbers[0] for numbers in result_of(run)[0]] == [3, 4, 4]

    RunFolder(run).cut_metrics(4)  # a run that goes on keeps them
    assert (run / "metrics.jsonl").read_text().splitlines() == lines
    RunFolder(run).cut_metrics(3)
    assert (run / "metrics.jsonl").read_text().splitlines() == lines[:1]


def test_nothing_yet(tmp_path: Path) -> None:
    assert read_progress(tmp_path, 5) is None
    write(tmp_path / "run", "")
    assert read_progress(tmp_path / "run", 5) is None
