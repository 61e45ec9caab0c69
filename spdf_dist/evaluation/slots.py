"""Slot accuracy of texts on the synthetic E2E data: the share of input slots that the texts mention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.data.grammar import parse_mr, slot_accuracy
from spdf_dist.data.tasks.files import read_csv


def share_said(inputs: Path, hypotheses: Sequence[str]) -> float:
    """The share in [0, 1] of all slots of the distinct inputs that their texts mention.

    Raises:
        UserError: the file cannot be read, is not synthetic data, or has another number of inputs.
    """
    meanings = [meaning for meaning, _ in groupby(row.get("mr", "") for _, row in read_csv(inputs))]
    if any("kind" not in dict(parse_mr(meaning)) for meaning in meanings):
        raise UserError(f"{inputs} is not the synthetic E2E data: slots of other data have no known wordings")
    if len(meanings) != len(hypotheses):
        raise UserError(f"{inputs} has {len(meanings)} inputs, but there are {len(hypotheses)} hypotheses")
    counts = [slot_accuracy(meaning, joined(text)) for meaning, text in zip(meanings, hypotheses, strict=True)]
    return sum(said for said, _ in counts) / sum(total for _, total in counts)


def joined(text: str) -> str:
    """``text`` with words rejoined that E2E's preparation splits, such as ``family - friendly`` and ``Tinker 's``."""
    return re.sub(r"\s+'", "'", re.sub(r"\s*-\s*", "-", text))
