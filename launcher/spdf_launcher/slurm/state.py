"""What Slurm says of a workflow's jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SlurmState:
    """One job (one array task) as Slurm sees it."""

    id: str
    state: str
    reason: str | None

    def in_words(self) -> tuple[str, str | None]:
        """A state of ours, and why."""
        return self.state, self.reason


def slurm_states(root: Path) -> dict[str, SlurmState]:
    """The submitted jobs of a folder by their names."""
    return {}
