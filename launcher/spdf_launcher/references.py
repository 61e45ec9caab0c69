"""``${...}`` in a workflow: the outputs of other jobs, and environment variables.

    ${jobs.NAME.OUTPUT}             the path of an output of job NAME, known when the workflow is read
    ${jobs.NAME.grid.KEY}           the value that the grid of job NAME gives to KEY in this cell
    ${jobs.SELECT.NAME.OUTPUT}      the same for the cell that a `select` job chose, known when that job is done
    ${jobs.SELECT.grid.KEY}         the chosen cell's value of a grid key
    ${env.NAME}                     an environment variable, which must be set
    $${                             a literal ${

A reference is replaced inside one value. Neither YAML nor a shell parses the result again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from spdf_dist.config.errors import UserError

PATTERN = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


def references(value: Any) -> Iterator[tuple[str, ...]]:
    """Every reference in a value (text, list or mapping), as its dotted parts."""
    if isinstance(value, str):
        for match in PATTERN.finditer(value):
            if match.group() != "$${":
                yield parts_of(match, value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from references(item)


def parts_of(match: re.Match[str], text: str) -> tuple[str, ...]:
    """The dotted parts of one match. Raises UserError for anything that is not a reference."""
    inner = match.group(1)
    if inner is None:
        raise UserError(f"'{text}': a reference is not closed: write ${{jobs.NAME.OUTPUT}}, or $${{ for a literal ${{")
    parts = tuple(inner.strip().split("."))
    if parts[0] not in ("jobs", "env") or len(parts) < 2 or not all(parts) or (parts[0] == "jobs" and len(parts) < 3):
        raise UserError(
            f"'${{{inner}}}' is not a reference: write ${{jobs.NAME.OUTPUT}}, ${{env.NAME}}, or $${{ for a literal ${{"
        )
    return parts


def substitute(value: Any, look_up: Callable[[tuple[str, ...]], str | None], final: bool) -> Any:
    """``value`` with every reference replaced by the result of ``look_up`` for its parts.

    A reference stays if the result is None. Unless ``final``, the result may contain references, and ``$${`` still
    stands for ``${``. A value can therefore be substituted in two steps.
    """

    def replacement(match: re.Match[str]) -> str:
        if match.group() == "$${":
            return "${" if final else "$${"
        found = look_up(parts_of(match, match.string))
        if found is None:
            return match.group()
        return found if final else str(escape(found))

    return map_text(value, lambda text: PATTERN.sub(replacement, text))


def escape(value: Any) -> Any:
    """``value`` escaped, so that a final substitution returns the original."""
    return map_text(value, lambda text: text.replace("${", "$${"))


def map_text(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` (text, list or mapping) with ``change`` applied to every text; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: map_text(item, change) for key, item in value.items()}
    return value
