"""A made-up evidence study with known answers: losses follow a law, and each effect has a known size."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from spdf_dist.studies.evidence.law import Shape, predict
from spdf_dist.studies.evidence.rows import DONE, Evidence, typed_rows

LAW = np.array([2.0, 0.9, 0.3, 0.8, 0.4, 0.5])
SHAPE = Shape(4, 128, 1536)
BASE = {"lr": 8e-3, "init_std": 0.06}
LEVEL = {"dense": 0.0, "s50": 0.5, "s75": 0.75}
LOST = {("e2e", "s50"): 0.005, ("e2e", "s75"): 0.05, ("webnlg", "s50"): 0.02, ("webnlg", "s75"): 0.3}
"""Loss added after fine-tuning. An untrained model is 1 nat above dense on both tasks."""
METHODS = {"rigl": -0.02, "gmp": -0.1, "variable-dense": 0.0}
BLOCKS = {"side8": 0.1, "side8-permuted": 0.05, "side16": 0.025, "side16-permuted": 0.01}


class Maker:
    """Makes rows; the noise of a seed is the same in all its runs, that of a run is small."""

    def __init__(self, noise: float, draw: int) -> None:
        self.noise, self.random = noise, random.Random(draw)
        self.rows: list[dict[str, Any]] = []

    def pretrain(
        self, job: str, width: int, level: float, tokens: float, seed: int = 100, add: float = 0.0, **more: object
    ) -> None:
        weights = int(SHAPE.weights(width))
        loss = (
            float(predict(LAW, weights, tokens, (1 - level) ** LAW[-1]))
            + add
            + (0.01 * ((seed + 2) % 5 - 2) if seed < 10 else 0.0)
        )
        row = {
            "job": job, "seed": seed, "state": DONE, "loss": loss + self.random.gauss(0, self.noise), "layers": 4,
            "width": width, "seq_length": 128, "vocab_size": 1536, "parameters": weights + 1664 * width,
            "linear": weights, "level": level, "steps": 10, "tokens": tokens,
            "flops": tokens * SHAPE.flops_per_token(width, 1 - level), "step_seconds": 0.1, "commit": "abc",
        }  # fmt: skip
        self.rows.append(row | BASE | more)

    def finetune(self, job: str, variant: str, seed: int, loss: float, width: int = 64, cell: str = "") -> None:
        linear = int(SHAPE.weights(width))
        parameters = linear + 1664 * width
        loss += 0.1 * seed + self.random.gauss(0, self.noise)
        row = {"job": job, "variant": variant, "cell": cell, "seed": seed, "state": DONE, "loss": loss}
        row["task"] = job.partition("-")[0]
        if variant:
            row |= {"width": width, "parameters": parameters, "linear": linear, "level": LEVEL[variant]}
        self.rows.append(row)


def made_up_study(noise: float = 0.001, draw: int = 0) -> Evidence:
    """All jobs of the study that the analysis reads."""
    maker = Maker(noise, draw)
    for lr in (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2):
        far = abs(np.log2(lr / 8e-3)) * 0.1
        for job, level in (("sweep", 0.0), ("optimum-supar", 0.75)):
            maker.pretrain(job, 64, level, 1.5e6, add=far, lr=lr, cell=f"lr={lr}")
        for variant, best in (("dense", 4e-3), ("s75", 1.6e-2)):
            moved = abs(np.log2(lr / best)) * 0.1
            maker.pretrain(
                "optimum-standard", 64, LEVEL[variant], 1.5e6, add=moved + 0.3, lr=lr, variant=variant, cell=f"lr={lr}"
            )
    maker.pretrain("artefact", 64, 0.0, 1.5e6, lr=4e-3, add=0.12)
    maker.pretrain("decay-rule", 64, 0.75, 1.5e6, lr=8e-3, add=0.1)
    for seed in range(1, 6):
        for variant, level in LEVEL.items():
            maker.pretrain("cooldown-10", 64, level, 3.07e6, seed, variant=variant)
            maker.pretrain("cooldown-20", 64, level, 6.14e6, seed, variant=variant)
            for task in ("e2e", "webnlg"):
                maker.finetune(f"{task}-20", variant, seed, 2 + LOST.get((task, variant), 0.0))
        for variant in ("dense", "s75"):
            maker.finetune("e2e-10", variant, seed, 2.1 + 0.04 * (variant == "s75"))
        maker.finetune("e2e-masked", "s75", seed, 2.4)
    for seed in range(1, 4):
        for task in ("e2e", "webnlg"):
            maker.finetune(f"{task}-untrained", "", seed, 3.0 + 0.3 - 0.1 * seed)  # the mean over the seeds of 0.1 seed
        for variant, level in LEVEL.items():
            for length in (5, 10, 20):
                tokens = length * 102_400.0
                maker.pretrain("cooldown-32", 32, level, tokens, seed, variant=variant, cell=f"length={length}")
            if variant != "s50":
                maker.pretrain("cooldown-96", 96, level, 6.14e6, seed, variant=variant)
        for variant in ("dense", "s75"):
            maker.finetune("e2e-96", variant, seed, 1.9 + 0.02 * (variant == "s75"), 96)
        for job, above in METHODS.items():
            maker.pretrain(job, 64, 0.75, 3.07e6, seed, add=above, update_seconds=0.05 if job == "rigl" else None)
        for name, above in BLOCKS.items():
            maker.pretrain("blocks", 64, 0.75, 3.07e6, seed, add=above, cell=f"pattern={name}")
        maker.pretrain("dense-equal", 64, 0.0, 1.82e6, seed)
        maker.pretrain("wide", 128, 0.75, 1.25e6, seed)
        maker.pretrain("variable-sparse", 64, 0.9, 2.75e6, seed)
    for level in (0.875, 0.9375):
        maker.pretrain("density", 64, level, 3.07e6, cell=f"level={level}")
    return Evidence(typed_rows(maker.rows))
