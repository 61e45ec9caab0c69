"""The whole trainer with GPU kernels in Triton's interpreter, compared with a run on the CPU.

The GPU kernels are those of sparse products, of the loss, and of norms, activation functions and rotary positions. They
run on the pretended device of tests/gpu/pretended_cuda.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

PRETENDED = Path(__file__).parents[1] / "gpu/pretended_cuda.py"
CASES = {
    # family, pattern, precision, tensor ranks, back end, maximum relative difference of a loss
    "GPT-2, whole blocks": ("gpt2", "balanced:64", "bf16", 1, "triton-block", 4e-3),
    "Llama, unstructured, two tensor ranks": ("llama", "unstructured", "fp32", 2, "triton-expand", 1e-5),
}


def losses(data: Any, folder: Path, family: str, pattern: str, precision: str, ranks: int, backend: str) -> list[float]:
    """The losses of three steps and of the validation after them, with a checkpoint in between."""
    config = folder / "config.yaml"
    folder.mkdir()
    pretended = backend.startswith("triton")
    config.write_text(
        f"""
device: {"cuda" if pretended else "cpu"}
run_dir: {folder / "run"}
model: {{family: {family}, num_layers: 1, hidden_size: 128, num_attention_heads: 4, seq_length: 32, vocab_size: 300}}
sparsity: {{level: 0.5, pattern: "{pattern}", execution: compressed}}
training: {{train_tokens: 384, global_batch_size: 4, micro_batch_size: 2, lr: 1e-2, precision: {precision}}}
parallel: {{tensor: {ranks}}}
data: {{train: {data.train}, validation: {data.validation}}}
checkpoint: {{interval: 2}}
validation: {{interval: 3, batches: 1}}
"""
    )
    environment = {**os.environ, "SPDF_KERNELS_BACKEND": backend, "OMP_NUM_THREADS": "1"}
    program = ["-m", "spdf_dist"]
    if pretended:
        program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(PRETENDED)]
    command = [sys.executable, *program, "pretrain", str(config)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert answer.returncode == 0, answer.stderr[-2000:]
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("val_loss")) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_training_gives_the_losses_of_the_cpu(case: str, tiny_data: Any, tmp_path: Path) -> None:
    family, pattern, precision, ranks, backend, tolerance = CASES[case]
    gpu, cpu = (
        losses(tiny_data, tmp_path / name, family, pattern, precision, count, name)
        for name, count in ((backend, ranks), ("portable", 1))
    )
    assert len(gpu) == len(cpu) == 4 and cpu[2] < cpu[0]
    assert gpu == pytest.approx(cpu, rel=tolerance)
