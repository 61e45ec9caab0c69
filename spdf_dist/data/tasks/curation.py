"""Curation Corpus (Curation, 2020): from a news article to its summary.

The corpus is a CSV of titles, summaries and URLs. The official scraper adds the articles, which gives a CSV with the
columns ``summary`` and ``article_content``. There is no official split. Therefore each split needs its own file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from spdf_dist.base.numbers import counted
from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks.example import Example, number_groups
from spdf_dist.data.tasks.files import read_csv
from spdf_dist.data.tasks.task import PUBLISHED, SPLITS, Task
from spdf_dist.scoring.texts import column_names

COLUMNS = ("article_content", "summary")
FAILED = "Exception"
"""What the corpus's first scraper writes, in the column ``html``, in place of a page that it could not get."""


def load(path: Path, split: str) -> list[Example]:
    """The articles with their summaries. Rows without an article or a summary are left out, and counted on stderr.

    Raises:
        UserError: the file or a column is missing.
    """
    pairs, left_out = [], 0
    for _, row in read_csv(path):
        missing = [column for column in COLUMNS if column not in row]
        if missing:
            raise UserError(
                f"{path} has no column '{missing[0]}' (it has {column_names(row)}); the corpus's own scraper adds the"
                " articles as article_content"
            )
        article, summary = (" ".join(row[column].split()) for column in COLUMNS)
        if article and summary and FAILED not in (article, row.get("html", "").strip()):
            pairs.append((article, summary))
        else:
            left_out += 1
    if pairs and left_out and is_rank_zero():
        print(f"{path}: left out {counted(left_out, 'row')} without an article or a summary", file=sys.stderr)
    return number_groups(pairs)


TASK = Task(name="curation", title="Curation Corpus", splits=SPLITS, load=load, published=PUBLISHED / "curation.csv")
