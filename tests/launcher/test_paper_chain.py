"""The paper's jobs for Curation Corpus run from the shipped workflow, with a small model and synthetic articles."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SPDF = [sys.executable, "-m", "spdf_dist"]
THINGS = ["river", "harbour", "market", "council", "railway", "school", "museum", "bridge", "forest", "theatre"]


def article(rng: random.Random) -> tuple[str, str]:
    """An article and its summary."""
    one, other = rng.sample(THINGS, 2)
    years = rng.sample(range(1900, 2020), 6)
    return " ".join(f"The {one} near the {other} opened in {year}." for year in years), f"A {one} by the {other}"


def write_data(folder: Path) -> None:
    """CSVs in the format of Curation's scraper, and packed text of the same kind."""
    rng = random.Random(0)
    (folder / "curation").mkdir(parents=True)
    for split, count in (("train", 100), ("validation", 20), ("test", 20)):
        with (folder / f"curation/{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["title", "summary", "url", "article_content"])
            for _ in range(count):
                text, summary = article(rng)
                writer.writerow(["a title", summary, "an address", text])
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": article(rng)[0]}) + "\n" for _ in range(500)), encoding="utf-8")
    model = str(folder / "text.model")
    call(["data", "tokenizer", "train", "--input", str(text), "--vocab-size", "320", "--out", model])
    call(
        [
            "data",
            "pack",
            "--input",
            str(text),
            "--tokenizer",
            model,
            "--seq-len",
            "128",
            "--out",
            str(folder / "packed"),
        ]
    )


def call(words: list[str], **env: str) -> str:
    """Run a `spdf` command that must succeed. Returns its output."""
    done = subprocess.run(
        [*SPDF, *words], env=os.environ | {"OMP_NUM_THREADS": "1"} | env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_curation_from_sparse_pretraining_to_the_tests_perplexity(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    call(
        [
            *["run", "workflows/gpt2_small_curation", "--dir", str(tmp_path / "work"), "--on", "local"],
            *["variants.dense=null", "variants.s50=null", "jobs.pretrain.resources.ranks_per_node=1"],
            "jobs.pretrain.set={data.train: '${env.SPDF_DATA}/packed', "
            "model: {num_layers: 1, hidden_size: 32, num_attention_heads: 2, seq_length: 128, vocab_size: 320}, "
            "training: {train_tokens: 8192, warmup_tokens: 1024, global_batch_size: 8, micro_batch_size: 8, "
            "precision: fp32}}",
            "jobs.finetune.grid={training.global_batch_size: [32], training.lr: [3e-3, 1e-5]}",
            "jobs.final.grid={seed: [1]}",
            *["jobs.finetune.set.training.precision=fp32", "jobs.final.set.training.precision=fp32"],
        ],
        SPDF_DATA=str(tmp_path / "data"),
    )
    jobs = tmp_path / "work/jobs"
    measured = {
        path.parents[1].name.rpartition("lr=")[2]: json.loads(path.read_text())["perplexity"]
        for path in jobs.glob("perplexity-validation/s75/*/out/perplexity.json")
    }
    choice = json.loads((jobs / "select/s75/out/choice.json").read_text())
    final = json.loads((jobs / "perplexity/s75/seed=1/out/perplexity.json").read_text())
    assert len(measured) == 2
    assert measured["0.003"] < measured["1e-05"]  # the higher rate learns in 20 steps
    assert choice["cell"]["training.lr"] == "0.003"
    assert final["split"] == "test"
    assert final["perplexity"] == pytest.approx(measured["0.003"], rel=0.3)
    (table,) = (jobs / "report/out").glob("scores-curation-*.csv")
    (row,) = csv.DictReader(table.open(encoding="utf-8"))
    assert row["perplexity ↓"] == f"{final['perplexity']:.2f}"
