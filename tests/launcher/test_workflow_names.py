"""Workflow files are found by path or by name."""

from __future__ import annotations

import pytest
from spdf_launcher.workflow import load_workflow

from spdf_dist.config.errors import UserError


def test_a_misspelt_workflow_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"^no workflow 'demoo': .*, did you mean 'demo'"):
        load_workflow("demoo")
    with pytest.raises(UserError, match=r"^no workflow 'gpt2_small': neither a file nor a shipped workflow"):
        load_workflow("gpt2_small")
