"""`spdf eval`, compared with a run of lm-evaluation-harness on the exported model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spdf_dist.checkpoint.hf_export import export_hf
from spdf_dist.cli.main import main

TASK = """
task: held_out
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task over a local file."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps({"text": f"The number {n} is a number."}) + "\n" for n in range(12)))
    (folder / "held_out.yaml").write_text(TASK.format(data=data))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))


@pytest.mark.slow
def test_the_numbers_are_those_of_the_harness_on_an_exported_model(
    tmp_path: Path, checkpoint: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    arguments = ["eval", str(checkpoint), "--tasks", "held_out", "--include-path", str(tasks), "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    export_hf(checkpoint, tmp_path / "exported")
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'exported'},dtype=float32",
        tasks=["held_out"],
        task_manager=TaskManager(include_path=str(tasks)),
        device="cpu",
        batch_size=8,
    )
    assert theirs is not None
    expected = theirs["results"]["held_out"]["bits_per_byte,none"]
    assert ours["tasks"]["held_out"]["bits_per_byte"] == pytest.approx(expected, abs=1e-9)
    assert ours["step"] == 3 and len(ours["checkpoint_sha256"]) == 64


def test_what_is_wrong_is_one_line(checkpoint: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["eval", str(checkpoint), "--include-path", str(tasks), "--tasks"]
    assert main([*start, "held_ot"]) == 2
    assert capsys.readouterr().err.strip() == "spdf eval: --tasks: 'held_ot' is not known, did you mean 'held_out'?"
    assert main([*start, "held_out", "--limit", "0"]) == 2
    assert capsys.readouterr().err.strip() == "spdf eval: --limit: must be 1 or more, got 0"
    (tasks / "held_out.yaml").write_text((tasks / "held_out.yaml").read_text().replace("held_out.jsonl", "gone.jsonl"))
    assert main([*start, "held_out"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spdf eval")]
    assert "the data of held_out cannot be loaded" in line
