"""The comparison of the ranks' times."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spdf_dist.training.rank_times import PHASES, RankTimes


def test_the_slowest_rank_is_that_with_the_longest_own_work() -> None:
    logged: dict[int, Mapping[str, float]] = {}
    said: list[str] = []
    groups = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    run: Any = SimpleNamespace(groups=groups, log=logged.__setitem__, say=said.append)
    times = RankTimes(run, every=10)
    # Rank 2 reads slowly. The others wait for it in the reduction.
    times.report(10, [[1, 20, 40, 31, 5], [1, 22, 40, 29, 5], [31, 21, 40, 0, 5]])
    values = logged[10]
    assert (values["ranks/slowest"], values["ranks/slowest_over_median"]) == (2, pytest.approx(52 / 23))
    reduced = [values[f"ranks/reduce_ms/{what}"] for what in ("min", "median", "max")]
    assert reduced == [0, 29, 31] and len(values) == 3 * len(PHASES) + 2
    assert said == ["step 10: rank 2 is the slowest: 52.0 ms per step for data and forward pass, 2.26 times the median"]
    times.report(20, [[1, 20, 40, 0, 5], [1, 22, 40, 0, 5]])
    assert len(said) == 1


def test_a_report_has_the_means_of_its_interval() -> None:
    logged: dict[int, Mapping[str, float]] = {}
    groups = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    run: Any = SimpleNamespace(groups=groups, log=logged.__setitem__, say=print)
    times = RankTimes(run, every=2)
    for step, forward in enumerate((10.0, 30.0, 50.0, 70.0), 1):
        times.after_step(SimpleNamespace(step=step), {"forward": forward})
    assert {step: values["ranks/forward_ms/max"] for step, values in logged.items()} == {2: 20.0, 4: 60.0}
