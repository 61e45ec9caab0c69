"""The training loop with losses from a table: stops, validations, and the best step."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spdf_dist.base.signals import StopRequest
from spdf_dist.config.errors import NonFiniteError, SpdfError, Stopped, UserError
from spdf_dist.parallel.groups import Groups
from spdf_dist.training.batches import GlobalBatch
from spdf_dist.training.callbacks import Callback, Callbacks, MetricsFile
from spdf_dist.training.engine import StepResult
from spdf_dist.training.loop import Loop
from spdf_dist.training.phase_times import PhaseTimes
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.state import load_training_state
from spdf_dist.training.training_state import TrainingState

SINGLE_PROCESS = Groups(0, 1, 0, 1, 0, 1, torch.device("cpu"))
VAL_LOSSES = {2: 5.0, 4: 3.0, 6: 4.0}


class Batches:
    """Six empty steps, with a validation after every second one."""

    total_steps = 6
    validation_passes = 1

    def batch(self, step: int) -> GlobalBatch:
        return GlobalBatch([], 10, 100)

    def consumed_tokens(self, step: int) -> int:
        return 10 * step

    def validation(self) -> Iterator[Any]:
        return iter(())


class Run:
    """A run folder with checkpoints in memory. ``stop_at`` names the place at which a signal arrives."""

    groups = SINGLE_PROCESS
    phases = PhaseTimes(torch.device("cpu"))

    def __init__(self, path: Path, losses: dict[int, float] = VAL_LOSSES) -> None:
        self.folder = RunFolder(path)
        self.path = path
        path.mkdir(exist_ok=True)
        self.losses = losses
        self.saved: dict[int, TrainingState] = {}
        self.notes: list[str] = []
        self.stop_at: tuple[str, int] | None = None
        self.failing: Callable[[int], Exception | None] = lambda step: None

    def step(self, *arguments: Any, stop_requested: bool, **more: Any) -> StepResult:
        return StepResult(7.0 - self.state.step, 1.0, self.stop_at == ("step", self.state.step + 1), False, False)

    def evaluate(self, batches: Any, stop: Any) -> float | None:
        return None if self.stop_at == ("validation", self.state.step) else self.losses[self.state.step]

    in_flight = False

    def complete(self) -> None:
        pass

    def close(self) -> None:
        pass

    def save(self, state: TrainingState, *, wait: bool) -> None:
        error = self.failing(state.step)
        if error is not None:
            raise error
        self.saved[state.step] = copy.deepcopy(state)

    def start(self, patience: int = 0, keep_best: bool = True) -> TrainingState:
        """Start the run, or resume from its newest checkpoint."""
        self.state = copy.deepcopy(self.saved[max(self.saved)]) if self.saved else TrainingState()
        self.folder.cut_metrics(self.state.step, validated=not self.state.validation_due)
        notes = Callback()
        notes.on_note = self.notes.append  # type: ignore[method-assign]
        Loop(
            engine=self,  # type: ignore[arg-type]
            data=Batches(),
            lr=lambda step: 0.1,
            state=self.state,
            callbacks=Callbacks({"metrics": MetricsFile(self.folder), "notes": notes}),
            saver=self,  # type: ignore[arg-type]
            checkpoint_interval=100,
            validation_interval=2,
            stop=StopRequest(),
            patience=patience,
            keep_best=keep_best,
        ).run()
        return self.state

    def lines(self) -> list[tuple[int, float]]:
        """(step, loss) of each metrics line."""
        records = map(json.loads, (self.path / "metrics.jsonl").read_text().splitlines())
        return [(record["step"], record.get("loss", record.get("val_loss"))) for record in records]


@pytest.mark.parametrize(("losses", "patience", "last"), [(VAL_LOSSES, 0, 6), ({2: 3.0, 4: 5.0, 6: 4.0}, 1, 4)])
@pytest.mark.parametrize(
    ("place", "step"), [*(("step", step) for step in range(1, 7)), *(("validation", step) for step in VAL_LOSSES)]
)
def test_a_stop_anywhere_loses_no_validation(
    place: str, step: int, losses: dict[int, float], patience: int, last: int, tmp_path: Path
) -> None:
    whole, stopped = Run(tmp_path / "whole", losses), Run(tmp_path / "stopped", losses)
    end = whole.start(patience)
    assert end.step == last
    if step <= last:
        stopped.stop_at = (place, step)
        with pytest.raises(Stopped):
            stopped.start(patience)
        assert stopped.saved[step].validation_due == (step in losses)
        stopped.stop_at = None
    assert stopped.start(patience) == end
    assert stopped.lines() == whole.lines()
    assert all(stopped.saved[at] == state for at, state in whole.saved.items())


def test_a_kill_after_a_validation_that_was_made_up_for_leaves_one_line_of_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {2: 5.0, 4: 6.0, 6: 4.0})
    run.stop_at = ("validation", 4)
    with pytest.raises(Stopped):
        run.start()
    run.stop_at = None
    run.failing = lambda step: KeyboardInterrupt() if step == 6 else None  # type: ignore[assignment, return-value]
    with pytest.raises(KeyboardInterrupt):
        run.start()
    run.failing = lambda step: None
    run.start()
    assert [step for step, _ in run.lines()] == [1, 2, 2, 3, 4, 4, 5, 6, 6]


def test_a_best_step_that_was_not_saved_is_not_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.failing = lambda step: SpdfError("No space left on device") if step == 4 else None
    state = run.start()
    assert (state.best_step, state.best_val_loss) == (6, 4.0) and sorted(run.saved) == [2, 6]
    assert run.notes == [
        "WARNING: No space left on device",
        "WARNING: step 4 had the best validation loss (3.0000) and was not saved; "
        "the best saved one is step 2's (5.0000)",
    ]
    run = Run(tmp_path / "other", {2: 5.0, 4: 6.0, 6: 7.0})
    run.failing = lambda step: SpdfError("No space left on device") if step == 2 else None
    assert run.start().best_step == 4
    assert run.notes[1].endswith("the best saved one is none yet")


def test_a_failed_last_save_and_a_mistake_are_errors(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.failing = lambda step: SpdfError("No space left on device") if step == 6 else None
    with pytest.raises(SpdfError, match="No space"):
        run.start(keep_best=False)
    run = Run(tmp_path / "other")
    run.failing = lambda step: UserError("no tokenizer")
    with pytest.raises(UserError, match="no tokenizer"):
        run.start()
    assert run.state.step == 2


def test_a_validation_loss_that_is_not_finite_is_an_error_and_no_metrics_line(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {2: math.nan})
    with pytest.raises(NonFiniteError, match="validation loss of step 2 is nan"):
        run.start()
    assert [step for step, _ in run.lines()] == [1, 2] and not run.saved


def test_a_training_state_of_an_older_checkpoint_loads_and_a_damaged_one_is_a_line() -> None:
    def load(state: Any, step: int = 3) -> TrainingState:
        return load_training_state(SimpleNamespace(path="step_3", step=step, manifest=SimpleNamespace(state=state)))

    older = {key: value for key, value in vars(TrainingState(step=3)).items() if key != "validation_due"}
    assert load(older) == TrainingState(step=3)
    for state in ({"step": 3, "newkey": 1}, [], None, {"step": "x"}, {"step": 4}, {"step": 3, "recent_losses": ["x"]}):
        with pytest.raises(UserError, match="step_3: its training state") as error:
            load(state)
        assert "\n" not in str(error.value)
