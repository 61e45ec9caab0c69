"""The coordinate check: whether the magnitude of activations during training depends on width and density.

Source: Yang et al. (arXiv 2203.03466), appendix D.1; for densities: SuPar (arXiv 2405.15743), figures 2 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spdf_dist.base.progress_bar import ProgressBar
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import PretrainConfig, SparsityConfig, TrainingConfig
from spdf_dist.config.validate import SUPAR_KEYS, validate_model, validate_pattern
from spdf_dist.model.gpt import GPT
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.ranks import SINGLE_PROCESS
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.bench import build_engine
from spdf_dist.training.setup import start

PLACES = ("attention", "mlp")
"""Names of the two outputs of a layer that are added to the residual stream."""


CELL = ("parameterization", "width", "density", "seed")
"""Columns of a run: its parameterization, hidden size, kept fraction of the weights, and seed."""


def variant(config: PretrainConfig, parameterization: str, width: int, density: float, seed: int) -> PretrainConfig:
    """The config with another parameterization, width, density and seed, and the same head size.

    Raises UserError if the head size or the pattern does not allow it.
    """
    model, training = config.model, config.training
    head = model.head_size
    if width % head:
        raise UserError(f"--widths: {width} is not a multiple of the head size {head} of the config")
    ffn = None if model.ffn_hidden_size is None else model.ffn * width // model.hidden_size
    groups = None
    if model.num_key_value_heads is not None:
        groups = max(1, model.num_key_value_heads * width // model.hidden_size)
    model = replace(
        model,
        hidden_size=width,
        num_attention_heads=width // head,
        num_key_value_heads=groups,
        ffn_hidden_size=ffn,
        dropout=0.0,
    )
    validate_model(model)
    sparsity = replace(config.sparsity, level=round(1 - density, 6), levels={}, init_scale="none", execution="masked")
    if density == 1:
        sparsity = SparsityConfig(targets=config.sparsity.targets)
    validate_pattern(sparsity, model)
    if parameterization == "standard":
        defaults: dict[str, Any] = {key: getattr(TrainingConfig(), key) for key in SUPAR_KEYS}
        training = replace(training, parameterization="standard", **defaults)
    else:
        training = replace(
            training,
            parameterization="supar",
            base_hidden_size=training.base_hidden_size or config.model.hidden_size,
        )
    return replace(
        config,
        model=model,
        sparsity=sparsity,
        training=replace(training, global_batch_size=training.micro_batch_size, precision="fp32"),
        parallel=replace(config.parallel, tensor=1, data=1, zero_stage=0),
        seed=seed,
        deepspeed=None,
    )


def synthetic_batch(config: PretrainConfig, groups: Groups) -> list[MicroBatch]:
    """Sequences in which the previous token determines half of the tokens. All steps use the same batch."""
    words, size = config.model.vocab_size, (config.training.micro_batch_size, config.model.seq_length + 1)
    generator = np.random.Generator(np.random.Philox(config.seed))
    successor = generator.permutation(words)
    frequency = 1 / (np.arange(words) + words / 16)
    ids = generator.choice(words, size, p=frequency / frequency.sum())
    follows = generator.random(size) < 0.5
    for at in range(1, size[1]):
        ids[:, at] = np.where(follows[:, at], successor[ids[:, at - 1]], ids[:, at])
    ids_BT1 = torch.from_numpy(ids.astype(np.int64)).to(groups.device)
    return [MicroBatch(ids_BT1[:, :-1].contiguous(), ids_BT1[:, 1:].contiguous(), 0)]


class Recorder:
    """Records the magnitudes of what attention and MLP add to the residual stream."""

    def __init__(self, model: GPT) -> None:
        self.sums = dict.fromkeys(PLACES, 0.0)
        self.counts = dict.fromkeys(PLACES, 0)
        for layer in model.decoder.layers:
            for place, linear in zip(PLACES, (layer.self_attention.linear_proj, layer.mlp.linear_fc2), strict=True):
                linear.register_forward_hook(lambda _module, _inputs, output, place=place: self.add(place, *output))

    def add(self, place: str, y: Tensor, bias: Tensor | None) -> None:
        """Add one output of a row-parallel linear, [T, B, O], and its bias, [O]."""
        whole = y.detach() if bias is None else y.detach() + bias.detach()
        self.sums[place] += float(whole.abs().mean())
        self.counts[place] += 1

    def take(self) -> dict[str, float]:
        """The mean magnitudes since the last call, by place."""
        means = {place: self.sums[place] / self.counts[place] for place in PLACES}
        self.sums, self.counts = dict.fromkeys(PLACES, 0.0), dict.fromkeys(PLACES, 0)
        return means


def trace(config: PretrainConfig, groups: Groups, steps: int) -> list[dict[str, float]]:
    """The magnitudes of ``steps`` + 1 forward passes, with an update after each, at a constant learning rate."""
    engine = build_engine(config, groups, "masked")
    recorder, batch = Recorder(engine.model), synthetic_batch(config, groups)
    tokens, found = config.training.micro_batch_size * config.model.seq_length, []
    for _ in range(steps + 1):
        engine.step(batch, tokens, config.training.lr)
        found.append(recorder.take())
    return found


def coordinate_check(
    config: PretrainConfig,
    widths: Sequence[int],
    densities: Sequence[float],
    steps: int = 10,
    seeds: Sequence[int] = (1,),
) -> pd.DataFrame:
    """Train each combination for ``steps`` updates on synthetic token ids, in this process.

    Returns a row per run and step (from 0), with the columns ``CELL``, ``step``, and for each of ``PLACES`` the mean
    absolute output after that number of updates, over all layers, tokens and features.

    Raises UserError for a width or density that the config's head size or pattern does not allow.
    """
    cells = [(p, w, d, s) for p in ("standard", "supar") for w in widths for d in densities for s in seeds]
    variants = [variant(config, *cell) for cell in cells]
    groups = start(variants[0], SINGLE_PROCESS)
    rows = []
    for cell, each in ProgressBar(list(zip(cells, variants, strict=True)), desc="coordinate check", unit="run"):
        run = dict(zip(CELL, cell, strict=True))
        rows += [run | {"step": step} | means for step, means in enumerate(trace(each, groups, steps))]
    return pd.DataFrame(rows)


def spread(points: pd.DataFrame, parameterization: str, step: int) -> dict[str, float]:
    """The largest magnitude over widths and densities divided by the smallest, by place, after ``step`` updates.

    Magnitudes are means over seeds.
    """
    chosen = points[(points.parameterization == parameterization) & (points.step == step)]
    means = chosen.groupby(["width", "density"])[list(PLACES)].mean()
    found: dict[str, float] = (means.max() / means.min()).to_dict()
    return found


def summary(points: pd.DataFrame) -> dict[str, Any]:
    """The check as a JSON value: every point, and the spreads of each parameterization by step."""
    names, steps = points.parameterization.unique(), points.step.unique()
    return {
        "schema_version": 1,
        "points": points.to_dict("records"),
        "spread": {name: {str(step): spread(points, name, step) for step in steps} for name in names},
    }


def draw(points: pd.DataFrame, path: Any) -> None:
    """Draw the figure: one row per parameterization, one column per place and width, one line per density."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = points.parameterization.unique()
    widths, densities = sorted(points.width.unique()), sorted(points.density.unique(), reverse=True)
    columns = [(place, width) for place in PLACES for width in widths]
    figure, axes = plt.subplots(
        len(names), len(columns), figsize=(2.6 * len(columns) + 0.6, 2.5 * len(names) + 0.6), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(densities)))
    for row, name in enumerate(names):
        for column, (place, width) in enumerate(columns):
            axis = axes[row][column]
            for density, colour in zip(densities, colours, strict=True):
                chosen = (points.parameterization == name) & (points.width == width) & (points.density == density)
                means = points[chosen].groupby("step")[place].mean()
                axis.plot(means.index, means, color=colour, marker="o", markersize=3, label=f"{density:g}")
            axis.set_yscale("log")
            axis.set_title(f"{name}: {place}, width {width}", fontsize=9)
            axis.grid(alpha=0.3)
        axes[row][0].set_ylabel("mean |output|")
    for axis in axes[-1]:
        axis.set_xlabel("updates")
    axes[0][-1].legend(title="density", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
