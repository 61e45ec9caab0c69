"""The trainer on a GPU: every execution, bf16 and fp32, recomputation, checkpoints, resuming, generation.

These tests check that everything runs and learns. Tests in the interpreter
(tests/kernels/test_trainer_through_the_interpreter.py) and the GPU lab check the values of losses.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

RUNS = [
    ("masked", "unstructured", "bf16"),
    ("compressed", "unstructured", "bf16"),
    ("compressed", "unstructured", "fp32"),
    ("compressed", "balanced:64", "bf16"),
    ("auto", "block:64", "bf16"),
]


def spdf(*arguments: str | Path) -> str:
    """Standard output of a command that must exit with 0."""
    pretended = [str(Path(__file__).with_name("pretended_cuda.py"))]
    program = pretended if os.environ.get("PRETEND_CUDA") else ["-m", "spdf_dist"]
    answer = subprocess.run(
        [sys.executable, *program, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stdout[-1500:] + answer.stderr[-1500:]
    return answer.stdout


def losses_of(run: Path) -> list[float]:
    """The losses of a run's steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("execution", "pattern", "precision"), RUNS)
def test_a_run_learns_saves_goes_on_and_generates(
    execution: str, pattern: str, precision: str, tiny_data: Any, tmp_path: Path, device: torch.device
) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(
        f"""
device: {device.type}
run_dir: {run}
model: {{num_layers: 1, hidden_size: 128, num_attention_heads: 2, seq_length: 32, vocab_size: 300, dropout: 0.1}}
sparsity: {{level: 0.5, pattern: "{pattern}", execution: {execution}}}
training:
  {{train_tokens: 384, global_batch_size: 4, micro_batch_size: 2, lr: 1e-2, precision: {precision},
   activation_checkpointing: true}}
data: {{train: {tiny_data.train}, validation: {tiny_data.validation}}}
checkpoint: {{interval: 2}}
validation: {{interval: 3, batches: 1}}
"""
    )
    spdf("pretrain", config)
    steps = losses_of(run)
    assert len(steps) == 3 and steps[-1] < steps[0]
    record = json.loads((run / "execution.json").read_text())
    assert set(record["layers"].values()) <= ({execution} if execution != "auto" else {"masked", "compressed"})
    shutil.rmtree(run / "checkpoints/step_3")
    spdf("pretrain", config)  # resumes from step 2
    assert losses_of(run)[-1] == pytest.approx(steps[-1], rel=1e-2)
    weights = json.loads(spdf("inspect", run, "--json"))["weights"]
    assert all(weight["pruned_nonzero"] == 0 for weight in weights)
    text = spdf("generate", run, "--prompt", "The 3th house", "--device", device.type, "--max-new-tokens", "4")
    assert text
