"""Slot accuracy of texts on the synthetic E2E data."""

from __future__ import annotations

from pathlib import Path

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.data.grammar import write_synthetic_e2e
from spdf_dist.data.tasks import load_task
from spdf_dist.evaluation.slots import share_said


def test_references_of_the_grammar_say_everything(tmp_path: Path) -> None:
    write_synthetic_e2e(str(tmp_path), 3)
    source = tmp_path / "testset_w_refs.csv"
    examples = {example.group: example.target for example in load_task("e2e", source, "test")}
    assert share_said(source, list(examples.values())) == 1.0
    assert share_said(source, list(examples.values())[::-1]) < 0.7
    with pytest.raises(UserError, match="but there are 1 hypotheses"):
        share_said(source, ["x"])


def test_other_data_have_no_slots(tmp_path: Path) -> None:
    source = tmp_path / "real.csv"
    source.write_text('mr,ref\n"name[A], food[B]",x\n')
    with pytest.raises(UserError, match="not the synthetic E2E data"):
        share_said(source, ["x"])
