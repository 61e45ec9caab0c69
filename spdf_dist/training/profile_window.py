"""A callback that records some steps with torch.profiler, for TensorBoard, Perfetto or chrome://tracing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.training.callbacks import Callback, RunInfo, StepMetrics


class Profiler(Callback):
    """Records steps ``start`` to ``start + steps - 1`` on every rank into ``profile/`` of the run folder."""

    every_rank = True

    def __init__(self, run: RunInfo, start: int = 5, steps: int = 3) -> None:
        if start < 1 or steps < 1:
            raise UserError(f"callbacks.profiler: start and steps must be 1 or more, got {start} and {steps}")
        self.path = run.folder.path / "profile" / f"rank_{run.rank}_steps_{start}_to_{start + steps - 1}.json"
        self.first, self.last = start, start + steps - 1
        self.profiler: Any = None

    def before_step(self, step: int) -> None:
        if step == self.first:
            from torch.profiler import ProfilerActivity, profile
            from torch.profiler import supported_activities as supported

            wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported())
            self.profiler = profile(activities=list(wanted), record_shapes=True)
            self.profiler.start()

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        if metrics.step == self.last:
            self.write()

    def on_end(self) -> None:
        self.write()

    def write(self) -> None:
        """Stop recording and write the trace, if steps were recorded."""
        if self.profiler is not None:
            self.profiler.stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.profiler.export_chrome_trace(str(self.path))
            self.profiler = None
