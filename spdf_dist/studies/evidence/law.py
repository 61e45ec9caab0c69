"""A scaling law of sparse pre-training, its fit with bootstrap intervals, and the best density for a FLOP budget.

    L(N, D, rho) = E + A (N rho^gamma / 1e5)^-alpha + B (D / 1e6)^-beta        nats per token

N is the number of weights of the linear layers, pruned ones included, D the number of tokens, rho the density.
rho^gamma is the share of its size that a sparse model is worth: with gamma 0 sparsity costs nothing, with gamma 1 only
the non-zeros count. Published laws state this share too: ``SHARES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spdf_dist.accounting.flops import training_flops
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.studies.evidence.rows import STUDY, Evidence

Array = NDArray[np.float64]
NAMES = ("E", "A", "alpha", "B", "beta", "gamma")
LOW, HIGH = np.array([0.05, 0.05, -0.5]), np.array([1.5, 1.5, 1.5])
"""Bounds of alpha, beta, gamma."""
GRID, ROUNDS, SHRINK = 5, 18, 0.65
SAMPLES = 300
Losses = dict[str, tuple[np.ndarray, np.ndarray]]
DENSITIES = {"dense": 1.0, "50%": 0.5, "75%": 0.25, "87.5%": 0.125, "93.75%": 0.0625}
WIDTHS = range(16, 257, 8)
"""Widths among which the law chooses the best for a budget."""


def base_row(evidence: Evidence) -> pd.Series | None:
    """The run of the sweep with the lowest loss: it has the chosen rate and deviation. None without a sweep."""
    swept = evidence.done[evidence.done.job == "sweep"].dropna(subset=["loss"])
    return swept.loc[swept.loss.idxmin()] if len(swept) else None


def law_points(evidence: Evidence, held_out: bool = False) -> pd.DataFrame:
    """The points of the fit, or those that it leaves out as a test: a row per model, density and length.

    Columns: ``width``, ``weights``, ``density``, ``tokens``, and means over the seeds of ``flops`` and ``loss``.
    """
    rows, base, jobs = evidence.done, base_row(evidence), STUDY["law"]
    wanted = rows.job.isin(jobs["held_out" if held_out else "jobs"])
    if base is not None and not held_out:
        wanted |= rows.job.isin(jobs["sweeps"]) & (rows.lr == base.lr) & (rows.init_std == base.init_std)
    rows = rows[wanted].dropna(subset=["loss", "width", "linear", "tokens", "flops"])
    rows = rows.assign(density=1 - rows.level.fillna(0.0)).assign(near=lambda found: found.density.round(4))
    groups = rows.groupby(["width", "near", "tokens"])
    points = groups.agg(
        weights=("linear", "first"), density=("density", "first"), flops=("flops", "mean"), loss=("loss", "mean"),
        seeds=("loss", "size"),
    )  # fmt: skip
    return points.reset_index().astype({"weights": float})


def terms(exponents: Array, weights: Array, tokens: Array, density: Array) -> tuple[Array, Array]:
    """The terms of A and B. ``exponents`` [..., 3] are alpha, beta, gamma; the others [P]; returns [..., P] each."""
    alpha, beta, gamma = (exponents[..., k, None] for k in range(3))
    return (weights / 1e5 * density**gamma) ** -alpha, (tokens / 1e6) ** -beta


def solve(exponents: Array, losses: Array, data: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Least squares for E, A, B at given exponents, none negative.

    Args:
        exponents: [S, G, 3].
        losses: [S, P].
        data: weights, tokens, density, [P] each.

    Returns:
        The sum of squares [S, G] (infinite where A or B would be negative), and E, A, B [S, G, 3].
    """
    n, d = terms(exponents, *data)
    full = np.stack([np.ones_like(n), n, d], -1)
    y = losses[:, None, :, None]

    def fitted(design: Array) -> Array:
        across = np.swapaxes(design, -1, -2)
        ridge = 1e-12 * np.eye(design.shape[-1])
        return np.asarray(np.linalg.solve(across @ design + ridge, across @ y)[..., 0], dtype=np.float64)

    free, bound = fitted(full), fitted(full[..., 1:])
    bound = np.concatenate([np.zeros_like(bound[..., :1]), bound], -1)
    linear = np.where(free[..., :1] < 0, bound, free)
    squares = (((full @ linear[..., None])[..., 0] - losses[:, None]) ** 2).sum(-1)
    return np.where((linear[..., 1:] < 0).any(-1), np.inf, squares), linear


def fit(losses: Array, data: tuple[Array, Array, Array]) -> Array:
    """The law's parameters [S, 6] in the order of ``NAMES`` for each set of losses [S, P].

    A grid over the three exponents closes in on its best point; E, A, B follow by least squares.
    """
    count = len(losses)
    steps = np.linspace(-1, 1, GRID)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    centre, reach = np.tile((LOW + HIGH) / 2, (count, 1)), (HIGH - LOW) / 2
    for _ in range(ROUNDS):
        exponents = np.clip(centre[:, None] + reach * offsets, LOW, HIGH)
        squares, linear = solve(exponents, losses, data)
        best = squares.argmin(1)
        centre = exponents[np.arange(count), best]
        reach = reach * SHRINK
    e, a, b = linear[np.arange(count), best].T
    return np.stack([e, a, centre[:, 0], b, centre[:, 1], centre[:, 2]], 1)


def predict(parameters: Array, weights: Any, tokens: Any, share: Any) -> Array:
    """The loss for parameters [..., 6], with ``share`` the share of its size that the model is worth."""
    e, a, alpha, b, beta, _ = np.moveaxis(np.asarray(parameters), -1, 0)
    return np.asarray(e + a * (weights * share / 1e5) ** -alpha + b * (tokens / 1e6) ** -beta)


@dataclass(frozen=True)
class Law:
    """A fitted law with its bootstrap samples."""

    points: pd.DataFrame
    """See ``law_points``."""
    best: Array
    """[6]"""
    samples: Array
    """[S, 6]"""
    deviation: float
    """Standard deviation of the residuals, nats."""

    def interval(self, name: str) -> tuple[float, float]:
        """95% bootstrap interval of a parameter."""
        return percentiles(self.samples[:, NAMES.index(name)])

    def value(self, name: str) -> float:
        """The fitted parameter."""
        return float(self.best[NAMES.index(name)])

    def identified(self, name: str) -> bool:
        """Whether the interval is narrower than the value itself and does not reach a bound of the search."""
        low, high = self.interval(name)
        floor, ceiling = {
            "alpha": (LOW[0], HIGH[0]), "beta": (LOW[1], HIGH[1]), "gamma": (LOW[2], HIGH[2])
        }.get(name, (0.0, np.inf))  # fmt: skip
        return low > floor + 1e-6 and high < ceiling - 1e-6 and high - low < abs(self.value(name))

    def share(self, density: float) -> tuple[float, float, float]:
        """The share of its size that a model of this density is worth, with its 95% interval."""
        gamma = NAMES.index("gamma")
        return float(density ** self.best[gamma]), *percentiles(density ** self.samples[:, gamma])


def percentiles(values: Array) -> tuple[float, float]:
    """The 2.5% and 97.5% percentiles."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def fit_law(points: pd.DataFrame, samples: int = SAMPLES) -> Law | None:
    """Fit the law; None for points that cannot identify it: too few, or no variety in size, length or density.

    The bootstrap draws residuals with replacement, scaled by sqrt(P / (P - 6)), and fits each sample.
    """
    if len(points) < len(NAMES) + 2 or points[["width", "tokens", "density"]].nunique().min() < 2:
        return None
    weights, tokens, density, losses = points[["weights", "tokens", "density", "loss"]].to_numpy(float).T
    data = (weights, tokens, density)
    best = fit(losses[None], data)[0]
    fitted = predict(best, weights, tokens, density ** best[-1])
    residuals = (losses - fitted) * np.sqrt(len(points) / (len(points) - len(NAMES)))
    drawn = np.random.default_rng(0).choice(residuals - residuals.mean(), (samples, len(points)))
    return Law(points, best, fit(fitted + drawn, data), float(residuals.std()))


def frantar(density: Any) -> Any:
    """Share by Frantar et al. (ICLR 2024, 2309.08520), T5 on C4, gradual pruning: L ~ (a rho^b + c) nonzeros^-d."""
    a, b, c, d = 0.568, 0.722, 1.523, 0.245
    return density * ((a + c) / (a * density**b + c)) ** (1 / d)


def average_count(density: Any) -> Any:
    """Share by Jin et al. (ICLR 2025, 2501.12486): the mean number of non-zeros over training counts."""
    return density


SHARES: Mapping[str, Callable[[Any], Any]] = {"Frantar et al.": frantar, "Jin et al.": average_count}


@dataclass(frozen=True)
class Shape:
    """What the FLOPs of a token depend on, apart from width and density."""

    layers: int
    seq_length: int
    vocab_size: int

    def flops_per_token(self, width: int, density: float) -> float:
        """Training FLOPs of a token, as the trainer counts them."""
        model = ModelConfig(
            num_layers=self.layers, hidden_size=width, num_attention_heads=1, seq_length=self.seq_length,
            vocab_size=self.vocab_size,
        )  # fmt: skip
        return training_flops(model, SparsityConfig(level=1 - density)) / self.seq_length

    def weights(self, width: int) -> float:
        """Weights of the linear layers, pruned ones included."""
        return 12.0 * self.layers * width * width


def shape_of(evidence: Evidence) -> Shape | None:
    """The shape that the study's models share; None without a run."""
    shapes = evidence.done[["layers", "seq_length", "vocab_size"]].dropna()
    return Shape(*map(int, shapes.iloc[0])) if len(shapes) else None


def best_at_budget(
    parameters: Array, shape: Shape, budgets: Array, density: float, share: Any
) -> tuple[Array, NDArray[np.int64]]:
    """The lowest predicted loss over ``WIDTHS`` at each FLOP budget, and the best width.

    Args:
        parameters: [S, 6].
        budgets: [C] FLOPs.
        share: share of its size that a model of this density is worth: a number, or [S].

    Returns:
        Two arrays [S, C].
    """
    worth = np.broadcast_to(np.asarray(share, dtype=np.float64), (len(parameters),))[:, None]
    losses = np.array([
        predict(parameters[:, None], shape.weights(width), budgets / shape.flops_per_token(width, density), worth)
        for width in WIDTHS
    ])  # fmt: skip
    return losses.min(0), np.array(WIDTHS)[losses.argmin(0)]


def with_predictions(law: Law, evidence: Evidence) -> pd.DataFrame:
    """The points of the fit and those of the test, with the loss that the law predicts."""
    points = pd.concat([law.points.assign(part="fit"), law_points(evidence, held_out=True).assign(part="test")])
    return points.assign(law=predict(law.best, points.weights, points.tokens, points.density ** law.best[-1]))


def losses_at(law: Law, shape: Shape, budgets: Array) -> Losses:
    """By sparsity: the predicted loss at each budget, and the best width [1 + S, C each].

    The first row is of the fitted law and the others of its bootstrap samples. The losses of sparse models are
    differences to dense.
    """
    both = np.concatenate([law.best[None], law.samples])
    found = {name: best_at_budget(both, shape, budgets, d, d ** both[:, -1]) for name, d in DENSITIES.items()}
    dense, _ = found["dense"]
    return {name: (loss if name == "dense" else loss - dense, width) for name, (loss, width) in found.items()}
