"""A task from one file outside the package can be trained, generated and scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODULE = '''
"""Captions: tags of a picture to a sentence."""

import json

from spdf_dist.data.tasks import Task
from spdf_dist.data.tasks.example import number_groups
from spdf_dist.scoring.metrics import Metric


def load(path, split):
    items = json.loads(path.read_text())[split]
    return number_groups([(", ".join(item["tags"]), item["caption"]) for item in items])


def words_found(outputs):
    pairs = list(zip(outputs.hypotheses, outputs.references, strict=True))
    return sum(bool(set(text.split()) & set(" ".join(texts).split())) for text, texts in pairs) / len(pairs)


TASK = Task(
    name="captions",
    title="Captions",
    splits=("train", "validation", "test"),
    load=load,
    metrics=(Metric("words_missed", "words missed", lambda outputs: 1 - words_found(outputs), lower_is_better=True),),
)
'''


@pytest.fixture
def extension(tmp_path: Path) -> dict[str, str]:
    """Make a distribution with one module, as pip installs it. Returns the environment that finds it."""
    place = tmp_path / "site"
    (place / "captions_task-1.dist-info").mkdir(parents=True)
    (place / "captions_task.py").write_text(MODULE)
    (place / "captions_task-1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: captions-task\nVersion: 1\n"
    )
    (place / "captions_task-1.dist-info/entry_points.txt").write_text("[spdf.tasks]\ncaptions = captions_task:TASK\n")
    return os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}


def spdf(env: dict[str, str], *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "spdf_dist", *words], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.distributed
def test_a_task_is_added_by_one_file(extension: dict[str, str], tiny_data: Any, tmp_path: Path) -> None:
    items = [{"tags": ["house", str(n)], "caption": f"The {n}th house has a red door."} for n in range(16)]
    data = tmp_path / "captions.json"
    data.write_text(json.dumps({"train": items, "validation": items[:4], "test": items[:3]}))
    pretrain = [
        *(f"data.train={tiny_data.train}", f"model.vocab_size={tiny_data.vocab_size}", f"run_dir={tmp_path}/pre"),
        *("device=cpu", "model.num_layers=1", "model.hidden_size=32", "model.num_attention_heads=2"),
        *("model.seq_length=32", "training.train_tokens=256", "training.warmup_tokens=64"),
        *("training.global_batch_size=4", "training.micro_batch_size=4"),
    ]
    spdf(extension, "pretrain", "cpu_1m", *pretrain)
    finetune = [
        *(f"finetune.checkpoint={tmp_path}/pre", "finetune.task=captions", f"finetune.train={data}"),
        *(f"finetune.validation={data}", "finetune.warmup_steps=1", "finetune.epochs=1", f"run_dir={tmp_path}/fine"),
        *("device=cpu", "training.precision=fp32", "training.global_batch_size=8", "training.micro_batch_size=8"),
    ]
    spdf(extension, "finetune", "finetune/e2e", *finetune)
    texts, references = tmp_path / "hyps.txt", tmp_path / "refs.txt"
    words = ["--task", "captions", "--input", str(data), "--out", str(texts), "--references-out", str(references)]
    spdf(extension, "generate", f"{tmp_path}/fine", *words, "--greedy", "--max-new-tokens", "4")
    words = ["--task", "captions", "--hypotheses", str(texts), "--references", str(references), "--json"]
    scores = json.loads(spdf(extension, "evaluate", *words).stdout)
    assert 0 <= scores["words_missed"] <= 1 and scores["provenance"]["task"] == "captions"
    assert [entry["kind"] for entry in scores["provenance"]["checkpoint"]["lineage"]] == ["finetune", "pretrain"]
    assert scores["provenance"]["checkpoint"]["lineage"][0]["synthetic"] is False
    assert "captions" in spdf(extension, "generate", "--help").stdout
    plain = os.environ | {"OMP_NUM_THREADS": "1"}
    refused = spdf(plain, "evaluate", *words, code=2).stderr
    assert "unknown task 'captions'" in refused and refused.count("\n") == 1


def test_a_broken_task_is_one_clear_line(extension: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "site" / "captions_task.py").write_text("import nothing_of_this_name\n")
    words = ["--task", "captions", "--hypotheses", "x", "--references", "y"]
    refused = spdf(extension, "evaluate", *words, code=2).stderr
    assert "the task 'captions'" in refused and "nothing_of_this_name" in refused and refused.count("\n") == 1
