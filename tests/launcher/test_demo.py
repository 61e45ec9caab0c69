"""`make demo` chooses its size, and keeps it when started again."""

from __future__ import annotations

import json
from pathlib import Path

from spdf_launcher import demo


def test_a_slower_machine_trains_on_fewer_tokens() -> None:
    sizes = [demo.size_for(probe) for probe in (0.001, 0.03, 0.06, 10.0)]
    assert sizes == sorted(sizes, reverse=True) and (sizes[0], sizes[-1]) == (demo.TOKENS[0], demo.TOKENS[-1])
    for probe, tokens in ((0.001, sizes[0]), (0.03, sizes[1])):
        assert tokens == demo.TOKENS[-1] or demo.estimated_seconds(tokens, probe) <= demo.BUDGET_SECONDS


def test_a_demo_that_was_begun_keeps_its_size(tmp_path: Path) -> None:
    assert demo.planned_tokens(tmp_path) is None
    config = {"training": {"train_tokens": 409_600}}
    (tmp_path / "plan.json").write_text(json.dumps({"jobs": [{"kind": "pretrain", "config": config}]}))
    assert demo.planned_tokens(tmp_path) == 409_600


def test_the_probe_takes_a_moment() -> None:
    assert 0 < demo.probe_seconds(1) < 20
