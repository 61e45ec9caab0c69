"""Reads YAML written by people: plain words stay text, and time and memory are bounded for any content."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from spdf_dist.config.errors import UserError

LARGEST_FILE = 1 << 20
"""Bytes. PyYAML is slow, so the limit also bounds the time."""
DEEPEST = 50
"""Nesting levels of mappings and lists."""
MAX_VALUES = 100_000
"""Values of a document, where the values behind an alias count each time."""
MISREAD = (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
"""Exceptions that PyYAML raises for an explicit tag on a value of another kind."""


class PlainLoader(yaml.SafeLoader):
    """YAML in which, unlike in version 1.1, 2:4 is not in base 60, 010 is not octal and 2024-01-02 is not a date."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raise yaml.YAMLError if the document is nested too deeply."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Raise yaml.YAMLError for a repeated key, whose first value PyYAML would silently discard."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return node

    def get_single_node(self) -> Any:
        """Raise yaml.YAMLError if aliases make the document too large, before values are constructed."""
        node = super().get_single_node()
        if node is not None and measure(node, {}, 0) > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES:,} values, those that aliases repeat counted each time")
        return node


PlainLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(0|[1-9][0-9_]*)?\.[0-9_]+([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def measure(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The number of values of a node and all below it, with each alias counted in full.

    ``known`` caches the counts by node. Raises yaml.YAMLError if an alias contains itself.
    """
    if depth > DEEPEST:
        raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep (an alias inside what it stands for?)")
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(measure(child, known, depth + 1) for child in children)
    return known[id(node)]


def read_yaml(text: str) -> Any:
    """The value of a YAML document; aliases become separate copies. Raises yaml.YAMLError."""
    try:
        return unshared(yaml.load(text, PlainLoader))
    except MISREAD as error:
        raise yaml.YAMLError(f"{str(error) or type(error).__name__:.200}") from None


def unshared(value: Any) -> Any:
    """A deep copy without shared parts, so that a change to one alias does not change the others."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def read_yaml_file(path: Path) -> Any:
    """The value of a YAML file. Raises UserError with one line that names the file."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: is not a file")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: more than {LARGEST_FILE >> 10} KiB; is it the right file?")
    try:
        return read_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())[:500]}") from None
