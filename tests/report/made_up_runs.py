"""Small run and workflow folders with synthetic curves, in the formats of the training loop and the launcher."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from spdf_dist.accounting.flops import training_flops
from spdf_dist.config.budget import total_steps
from spdf_dist.config.load import build, to_tree
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig

BATCH, LENGTH, STEPS = 16, 128, 120


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_run(
    folder: Path,
    tree: dict[str, Any],
    losses: list[float],
    validation: dict[int, float],
    flops_per_sequence: int,
    first: int = 1,
) -> None:
    """A run folder with one metrics line per step. Steps are counted from ``first``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    manifest = folder / "checkpoints" / f"step_{first + len(losses) - 1}" / "manifest.json"
    write_json(manifest, {"of": str(folder)})
    lines = []
    for step, loss in enumerate(losses, first):
        lines.append(
            {
                "step": step,
                "consumed_tokens": step * BATCH * LENGTH,
                "loss": loss,
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens_per_s": 20_000.0,
                "step_ms": 100.0,
                "model_flops": flops_per_sequence * BATCH,
                "total_flops": step * flops_per_sequence * BATCH,
                "mfu": None,
                "skipped_iterations": 0,
            }
        )
        if step in validation:
            lines.append({"step": step, "val_loss": validation[step]})
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def lineage(run: Path, parent: Path | None = None, synthetic: bool = False) -> list[dict[str, Any]]:
    """The lineage of a run's checkpoint in the trainer's format."""
    (manifest,) = run.glob("checkpoints/*/manifest.json")
    entry = {
        "kind": "finetune" if parent else "pretrain",
        "step": 1,
        "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "path": str(manifest.parent.resolve()),
        "config": yaml.safe_load((run / "config.yaml").read_text()),
        "best_val_loss": None,
        "synthetic": synthetic if parent else None,
    }
    return [entry, *(lineage(parent) if parent else [])]


def write_scores(
    path: Path,
    run: Path,
    parent: Path,
    *,
    task: str = "e2e",
    split: str = "test",
    synthetic: bool = False,
    settings: dict[str, Any] | None = None,
    **metrics: float,
) -> None:
    """The output of ``spdf evaluate --json`` for texts of ``spdf generate``."""
    checkpoint = {"lineage": lineage(run, parent, synthetic)}
    provenance = {
        "schema_version": 1,
        "task": task,
        "split": split,
        "synthetic": synthetic,
        "checkpoint": checkpoint,
        "settings": settings or {"beams": 10},
    }
    write_json(path, {"schema_version": 1, "task": task, "split": split, **metrics, "provenance": provenance})


def pretrain_run(
    folder: Path,
    level: float,
    *,
    steps: int = STEPS,
    seed: int = 1,
    gap: float = 0.0,
    lr: float = 6e-4,
    tensor: int = 1,
    **model: int,
) -> PretrainConfig:
    """A pre-training run whose loss falls from ln V to ``gap`` above that of the dense run."""
    shape = {"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "seq_length": LENGTH, "vocab_size": 2048}
    tree = {
        "run_dir": str(folder),
        "seed": seed,
        "model": shape | model,
        "sparsity": {"level": level, "execution": "compressed"},
        "training": {"train_tokens": steps * BATCH * LENGTH, "global_batch_size": BATCH, "lr": lr},
        "parallel": {"tensor": tensor},
    }
    config: PretrainConfig = build(PretrainConfig, tree, "")
    noise = random.Random(seed)
    curve = [3.6 + gap + 4.0 * math.exp(-step / 25) for step in range(steps)]
    losses = [loss + noise.gauss(0, 0.05) for loss in curve]
    validation = {step: curve[step - 1] + 0.02 for step in range(20, steps + 1, 20)}
    write_run(folder, to_tree(config), losses, validation, training_flops(config.model, config.sparsity))
    if level and steps:
        layers = {"qkv": "compressed", "expand": "compressed"}
        write_json(folder / "execution.json", {"schema_version": 1, "layers": layers, "reason": "set"})
    return config


PAPER_SHAPE = {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "vocab_size": 50257}


def paper_run(
    folder: Path, level: float, *, seed: int = 1, tokens: int = 2_500_000_000, whole: bool = True, **sparsity: Any
) -> PretrainConfig:
    """A pre-training run of GPT-2 Small with only its last step, or an earlier step where not ``whole``."""
    tree = {
        "run_dir": str(folder),
        "seed": seed,
        "model": PAPER_SHAPE,
        "sparsity": {"level": level, **sparsity},
        "training": {"train_tokens": tokens, "warmup_tokens": 0},
    }
    config: PretrainConfig = build(PretrainConfig, tree, "")
    losses = [3.0] if tokens else []
    flops = training_flops(config.model, config.sparsity)
    write_run(folder, to_tree(config), losses, {}, flops, total_steps(config) - (not whole))
    return config


def finetune_run(
    folder: Path,
    checkpoint: Path,
    train: str,
    config: PretrainConfig,
    *,
    seed: int = 1,
    gap: float = 0.0,
    lr: float = 1e-4,
    task: str = "e2e",
    keep_mask: bool = False,
    steps: int = 40,
    synthetic: bool = False,
) -> None:
    """A fine-tuning run."""
    tree = to_tree(
        build(
            FinetuneConfig,
            {
                "run_dir": str(folder),
                "seed": seed,
                "finetune": {"checkpoint": str(checkpoint), "task": task, "train": train, "keep_mask": keep_mask},
                "training": {"lr": lr},
            },
            "",
        )
    )
    losses = [1.6 + gap + 2 * math.exp(-step / 12) for step in range(steps)]
    write_run(folder, tree, losses, {steps // 2: 1.9 + gap, steps: 1.6 + gap}, training_flops(config.model, None, 64))
    reactivated = int(config.sparsity.level * 786_432)
    finetuned = {"reactivated": reactivated, "reactivated_norm": 1.25, "best_val_loss": 1.6 + gap, "epochs": 2}
    write_json(folder / "finetune.json", finetuned)
    parent = next(place for place in (checkpoint, *checkpoint.parents) if (place / "config.yaml").is_file())
    recorded = {"schema_version": 1, "lineage": lineage(parent), "synthetic": synthetic}
    write_json(folder / "lineage.json", recorded)


def write_job(
    root: Path,
    job_id: str,
    kind: str,
    needs: list[str],
    variant: str | None = None,
    *,
    cell: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    key: str = "key",
    parents: dict[str, str] | None = None,
    done: bool = True,
) -> Path:
    """The files of the launcher for a job. Returns the job's folder."""
    folder = root / "jobs" / job_id
    name = job_id.split("/")[0]
    write_json(
        folder / "job.json",
        {
            "id": job_id,
            "name": name,
            "kind": kind,
            "variant": variant,
            "cell": cell or {},
            "needs": needs,
            "config": config,
            "key": key,
            "parents": parents or {},
        },
    )
    if not done:
        return folder
    write_json(
        folder / "manifest.json",
        {
            "schema_version": 1,
            "job": job_id,
            "kind": kind,
            "status": "done",
            "reason": None,
            "key": key,
            "inputs": {"parents": parents or dict.fromkeys(needs, "key")},
            "attempts": 1,
            "started": "2026-01-01T10:00:00Z",
            "ended": "2026-01-01T10:02:00Z",
            "metrics": {"bleu": 99.0},
        },
    )
    return folder


VARIANTS = {"untrained": (0.0, 0, 1.0), "dense": (0.0, STEPS, 0.0), "s75": (0.75, STEPS, 0.08)}
"""(level, steps, added loss)."""


def write_workflow(root: Path) -> Path:
    """An untrained baseline, dense and 75%, fine-tuned and scored on synthetic data."""
    write_job(root, "grammar", "synthetic-e2e", [])
    for variant, (level, steps, gap) in VARIANTS.items():
        pretrain = write_job(root, f"pretrain/{variant}", "pretrain", [], variant)
        config = pretrain_run(pretrain / "run", level, steps=steps, gap=gap)
        finetune = write_job(root, f"finetune/{variant}", "finetune", [f"pretrain/{variant}", "grammar"], variant)
        data = str(root / "jobs" / "grammar" / "out" / "trainset.csv")
        finetune_run(finetune / "run", pretrain / "run", data, config, gap=gap, synthetic=True)
        generate = write_job(root, f"generate/{variant}", "generate", [f"finetune/{variant}", "grammar"], variant)
        evaluate = write_job(
            root, f"evaluate/{variant}", "evaluate", [generate.relative_to(root / "jobs").as_posix()], variant
        )
        scores = {
            "bleu": 0.61 - 0.2 * gap,
            "nist": 7.9 - gap,
            "meteor": 0.44 - 0.1 * gap,
            "rouge_l": 0.68 - 0.1 * gap,
            "cider": 2.1 - gap,
            "slot_accuracy": 0.93 - 0.3 * gap,
        }
        write_scores(evaluate / "out" / "scores.json", finetune / "run", pretrain / "run", synthetic=True, **scores)
    return root


def write_study(root: Path, bleu: dict[str, list[float]], planned: int = 3) -> Path:
    """A workflow over sizes, variants and seeds. ``bleu`` has one score per seed by SIZE-WHAT. Further seeds, up
    to ``planned``, have not run.

    Each cell tries two learning rates and selects the one with the lower validation loss. The loss is 2 - BLEU on E2E,
    and 3 - 2 BLEU on WebNLG.
    """
    for variant, scores in bleu.items():
        size, what = variant.split("-")[:2]
        level = {"s50": 0.5, "s75": 0.75}.get(what, 0.0)
        sparse = variant.endswith("-sparse")
        tail, variant = ("-sparse", variant.removesuffix("-sparse")) if sparse else ("", variant)
        for seed in range(1, planned + 1):
            done, cell = seed <= len(scores), {"seed": str(seed)}
            gap = -scores[seed - 1] if done else 0.0
            where = f"{variant}/seed={seed}"
            pretrain = write_job(root, f"pretrain/{where}", "pretrain", [], variant, cell=cell, done=done)
            width = 128 if size == "1m" else 256
            steps = 0 if what == "untrained" else 40
            if done:
                config = pretrain_run(
                    pretrain / "run", level, steps=steps, seed=seed, hidden_size=width, num_attention_heads=4
                )
            candidates = []
            for lr, worse in ((1e-3, 0.0), (3e-3, 0.5)):
                job_id = f"finetune{tail}/{where},lr={lr}"
                job_config = {"finetune": {"keep_mask": sparse}}
                tuned = write_job(
                    root,
                    job_id,
                    "finetune",
                    [f"pretrain/{where}"],
                    variant,
                    cell=cell | {"training.lr": str(lr)},
                    config=job_config,
                    done=done,
                )
                candidates.append(job_id)
                if done:
                    finetune_run(
                        tuned / "run",
                        pretrain / "run",
                        "e2e/trainset.csv",
                        config,
                        gap=0.4 + gap + worse,
                        lr=lr,
                        keep_mask=sparse,
                    )
            best = write_job(root, f"best{tail}/{where}", "select", candidates, variant, cell=cell, done=done)
            if done:
                write_json(best / "out" / "choice.json", {"schema_version": 1, "job": candidates[0]})
                if not sparse:
                    other = write_job(
                        root, f"finetune-webnlg/{where}", "finetune", [f"pretrain/{where}"], variant, cell=cell
                    )
                    finetune_run(
                        other / "run", pretrain / "run", "webnlg/train.json", config, gap=1.4 + 2 * gap, task="webnlg"
                    )
            needs = [f"best{tail}/{where}"]
            write_job(root, f"generate{tail}/{where}", "generate", needs, variant, cell=cell, done=done)
            needs = [f"generate{tail}/{where}"]
            evaluate = write_job(root, f"evaluate{tail}/{where}", "evaluate", needs, variant, cell=cell, done=done)
            if done:
                chosen = root / "jobs" / candidates[0] / "run"
                write_scores(evaluate / "out" / "scores.json", chosen, pretrain / "run", bleu=scores[seed - 1])
    return root


CHAIN_CELLS = ((1e-4, 0.0, 0.65), (5e-5, 0.1, 0.70))
"""(learning rate, loss above the best, validation BLEU). The second one is selected."""


def write_chain(root: Path) -> Path:
    """Jobs as in the shipped paper workflows: candidates scored on validation data, then new seeds on the test set."""
    for variant, level in (("dense", 0.0), ("s75", 0.75)):
        pretrain = write_job(root, f"pretrain/{variant}", "pretrain", [], variant)
        config = pretrain_run(pretrain / "run", level, steps=3)
        write_job(root, f"densified/{variant}", "densify", [f"pretrain/{variant}"], variant)
        candidates = []
        for lr, gap, bleu in CHAIN_CELLS:
            where = f"{variant}/lr={lr:g}"
            cell = {"training.lr": f"{lr:g}"}
            tuned = write_job(root, f"finetune/{where}", "finetune", [f"densified/{variant}"], variant, cell=cell)
            finetune_run(tuned / "run", pretrain / "run", "e2e/trainset.csv", config, gap=gap, lr=lr, seed=1234)
            write_outputs(root, "validate", "score", where, f"finetune/{where}", "validation", bleu, pretrain / "run")
            candidates.append(f"score/{where}")
        best = write_job(root, f"select/{variant}", "select", candidates, variant)
        write_json(best / "out" / "choice.json", {"schema_version": 1, "job": candidates[1]})
        for seed in (1, 2, 3):
            where = f"{variant}/seed={seed}"
            needs = [f"densified/{variant}", f"select/{variant}"]
            final = write_job(root, f"final/{where}", "finetune", needs, variant, cell={"seed": str(seed)})
            finetune_run(final / "run", pretrain / "run", "e2e/trainset.csv", config, gap=0.1, lr=5e-5, seed=seed)
            bleu = 0.5 + 0.01 * seed
            write_outputs(root, "generate", "evaluate", where, f"final/{where}", "test", bleu, pretrain / "run")
    return root


def write_outputs(
    root: Path, generate: str, evaluate: str, where: str, tuned: str, split: str, bleu: float, pretrain: Path
) -> None:
    """The outputs of a fine-tuned model and their score."""
    variant = where.partition("/")[0]
    write_job(root, f"{generate}/{where}", "generate", [tuned], variant)
    folder = write_job(root, f"{evaluate}/{where}", "evaluate", [f"{generate}/{where}"], variant)
    write_scores(folder / "out" / "scores.json", root / "jobs" / tuned / "run", pretrain, split=split, bleu=bleu)
