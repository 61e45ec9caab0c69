"""Converts YAML and command-line overrides to a typed config tree, and back."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spdf_dist.config.errors import UserError
from spdf_dist.config.paths import with_home, written_path
from spdf_dist.config.schema import AnyConfig, DatasetEntry, FinetuneConfig, PretrainConfig
from spdf_dist.config.suggest import nearest
from spdf_dist.config.validate import validate, validate_model
from spdf_dist.config.values import PathText
from spdf_dist.config.yaml_reader import DEEPEST, read_yaml, read_yaml_file
from spdf_dist.model.architecture import architecture_of

T = TypeVar("T", bound=AnyConfig)

IDENTITY_EXEMPT = (
    "run_dir",
    "parallel",
    "sparsity.execution",
    "device",
    "checkpoint",
    "validation.interval",
    "kernels",
    "callbacks",
    "training.activation_checkpointing",
)
"""Keys that may differ when a run continues. They do not change what is computed, apart from rounding."""

WITHOUT_DROPOUT_EXEMPT = ("training.micro_batch_size",)
"""Further keys that may differ in a run without dropout. With dropout, the dropped activations depend on them."""

FIXED = (
    "model",
    "sparsity",
    "seed",
    "finetune.checkpoint",
    "finetune.task",
    "finetune.keep_mask",
    "training.init_from",
    "training.optimizer",
)
"""Keys that cannot change, not even with ``--change``: another value makes another run."""

LONGEST_CHAIN = 20
SHOWN_CHARACTERS = 60
LONGEST_OVERRIDE = 100_000
LARGEST_INTEGER = 2**62
"""Integers beyond this are a mistake in any key."""

NEEDS_LEVEL = ("pattern", "patterns", "targets", "permute", "distribution", "init_scale")
"""Keys of ``sparsity`` that have no effect on a dense model."""


def load_config(kind: type[T], source: str, overrides: Sequence[str] = ()) -> T:
    """Read a config.

    Args:
        kind: ``PretrainConfig`` or ``FinetuneConfig``.
        source: a YAML file, or the name of a shipped config with or without ``.yaml``.
        overrides: ``key.sub=value`` with the value in YAML.

    Raises:
        UserError: a file cannot be read, or a key or value is not valid.
    """
    return config_from_tree(kind, load_tree(source, overrides))


def load_tree(source: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config as nested dicts, not yet checked. The arguments are those of ``load_config``. Raises UserError."""
    tree = read_tree(find_config(source))
    for override in overrides:
        merge(tree, parse_override(override))
    return tree


def kind_of(tree: dict[str, Any]) -> type[PretrainConfig] | type[FinetuneConfig]:
    """The class of a config, by its sections."""
    return FinetuneConfig if "finetune" in tree else PretrainConfig


def config_from_tree(kind: type[T], tree: dict[str, Any]) -> T:
    """The typed and validated config of a tree, such as a run folder's ``config.yaml``.

    Without ``sparsity.targets`` in the tree, the targets are all matrices of the model's family. Raises UserError.
    """
    config = build(kind, tree, "")
    require_level(tree.get("sparsity"))
    if isinstance(config, PretrainConfig) and "targets" not in tree.get("sparsity", {}):
        validate_model(config.model)
        targets = list(architecture_of(config.model).targets)
        config = dataclasses.replace(config, sparsity=dataclasses.replace(config.sparsity, targets=targets))
    validate(config)
    return config


def require_level(sparsity: Any) -> None:
    """Raise UserError if a tree sets the form of the sparsity but no level: the model would be dense."""
    idle = [key for key in NEEDS_LEVEL if key in (sparsity or {})]
    if idle and not {"level", "levels"} & set(sparsity):
        raise UserError(
            f"sparsity.{idle[0]}: {sparsity[idle[0]]} has no effect without sparsity.level, which is not set; "
            f"set it (0 is a dense model)"
        )


def shipped_configs() -> list[str]:
    """Names of the configs in the package, sub-folders included, without ``.yaml``."""
    root = Path(str(resources.files("spdf_configs")))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def find_config(source: str) -> Path:
    """The file that ``source`` names: a path if that exists, otherwise a shipped config. Raises UserError."""
    path = Path(with_home(source))
    if path.is_file():
        return path
    name = source.removesuffix(".yaml")
    if name in shipped_configs():
        return Path(str(resources.files("spdf_configs"))) / f"{name}.yaml"
    # The docs write `configs/NAME.yaml`, the path in a checkout. A wheel ships the same file under NAME.
    if name.startswith("configs/") and name.removeprefix("configs/") in shipped_configs():
        return Path(str(resources.files("spdf_configs"))) / f"{name.removeprefix('configs/')}.yaml"
    raise UserError(f"no config '{source}': neither a file nor a shipped config{nearest(name, shipped_configs())}")


def config_beside(path: Path, name: str, find: Callable[[str], Path] = find_config) -> Path:
    """The file that ``name`` means in the file ``path``: a path relative to it, or one that ``find`` finds."""
    beside = path.parent / name
    return beside if beside.is_file() else find(name)


def read_tree(path: Path, find: Callable[[str], Path] = find_config, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file as nested dicts, merged over the file that its ``base:`` key names.

    ``find`` finds a base that is not relative to the file. ``seen`` holds the files that led here. Raises UserError.
    """
    if path.resolve() in seen:
        raise UserError(f"{path}: base: forms a cycle")
    if len(seen) > LONGEST_CHAIN:
        raise UserError(f"{path}: a chain of more than {LONGEST_CHAIN} files by base:")
    tree = read_yaml_file(path)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys and values at the top")
    base = tree.pop("base", None)
    if base is None:
        return tree
    below = read_tree(config_beside(path, str(base), find), find, (*seen, path.resolve()))
    merge(below, tree)
    return below


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``. Raises UserError for anything else."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"'{text}' is not an override: write key.sub=value")
    if len(value) > LONGEST_OVERRIDE:
        raise UserError(f"{shown(key)}=...: {len(value):,} characters are too many for a value")
    try:
        leaf = read_yaml(value) if value.strip() else None
    except yaml.YAMLError:
        leaf = value
    if isinstance(leaf, int | float) and not isinstance(leaf, bool) and str(leaf) != value.strip():
        leaf = value.strip()  # a key of type text needs the number as it is written: run_dir=1.10
    return at_key(key.strip(), leaf)


def at_key(key: str, leaf: Any) -> dict[str, Any]:
    """A tree that holds only ``leaf``, at the dotted ``key``. Raises UserError for a key with too many levels."""
    first, *parts = key.split(".")
    if len(parts) >= DEEPEST:
        raise UserError(f"the key {shown(key)} names {len(parts) + 1} levels, and no key has that many")
    for part in reversed(parts):
        leaf = {part: leaf}
    return {first: leaf}


def merge(tree: dict[str, Any], over: dict[str, Any]) -> None:
    """Merge ``over`` into ``tree``, in place. Dicts are merged; any other value replaces the old one."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value


def build(kind: Any, tree: Any, where: str) -> Any:
    """An instance of the dataclass ``kind`` from nested dicts; ``where`` is the dotted key, for errors.

    Raises UserError for a key that the class lacks, a value of another type or a missing value.
    """
    if tree is None:  # otherwise defaults would silently replace the values of a base file
        raise UserError(f"config key '{where}' is a section without keys: give it some or leave it out")
    if not isinstance(tree, dict):
        raise UserError(f"config key '{where}': expected keys and values, got {shown(tree)}")
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {}
    for key, value in tree.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise UserError(f"unknown config key '{dotted}'{nearest(str(key), hints)}")
        values[key] = convert(hints[key], value, dotted)
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"config key '{where}': {error}") from None


def convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` converted to the annotated type ``hint``. Raises UserError with the key ``where``."""
    if dataclasses.is_dataclass(hint):
        if hint is DatasetEntry and isinstance(value, str):
            return DatasetEntry(written_path(value, f"config key '{where}'"))
        return build(hint, value, where)
    origin = typing.get_origin(hint)
    if hint is PathText:
        return written_path(convert(str, value, where), f"config key '{where}'")
    if origin is typing.Annotated:  # `validate` checks the range, and the words of a Literal
        return convert(hint.__origin__, value, where)
    if origin is typing.Literal:
        return convert(str, value, where)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        inner = [option for option in options if option is not type(None)]
        if len(inner) == 1:
            return convert(inner[0], value, where)
        return convert(dict[str, Any] if isinstance(value, dict) else PathText, value, where)
    if origin is list:
        (item,) = typing.get_args(hint)
        values = value if isinstance(value, list) else [] if value is None else [value]
        return [convert(item, v, f"{where}[{i}]") for i, v in enumerate(values)]
    if origin is dict:
        if isinstance(value, dict):
            item = (*typing.get_args(hint), Any, Any)[1]
            return (
                numbers(value)
                if item is Any
                else {str(key): convert(item, each, f"{where}.{key}") for key, each in value.items()}
            )
        raise UserError(f"config key '{where}': expected keys and values, got {shown(value)}")
    if hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is str:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            if "\0" in str(value):
                raise UserError(f"config key '{where}': {shown(value)} has a zero byte")
            return str(value)
        if value is None:
            raise UserError(f"config key '{where}': has no value; write '' for an empty text")
    elif not isinstance(value, bool):
        # YAML 1.1 reads 6e-4 as a string and 2.5e9 as a float. People write both, also for integers.
        try:
            number = float(str(value).replace("_", ""))
        except ValueError:
            number = float("nan")
        if hint is float and number == number:
            return number
        if hint is int and abs(number) <= LARGEST_INTEGER and number == int(number):
            return value if isinstance(value, int) else int(number)
        if hint is int and LARGEST_INTEGER < abs(number) < float("inf"):
            raise UserError(f"config key '{where}': {shown(value)} is too large")
    raise UserError(f"config key '{where}': expected {describe(hint)}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value for a message, shortened to ``SHOWN_CHARACTERS``."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def numbers(value: Any) -> Any:
    """A value of an untyped key, in which text in the form of a number, such as ``1e-3``, becomes that number."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?", value):
        number = float(value.replace("_", ""))
        return int(number) if value.lstrip("-+").replace("_", "").isdigit() else number
    return value


def describe(hint: Any) -> str:
    """A type in words, for messages."""
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def to_tree(config: Any) -> dict[str, Any]:
    """A config as nested dicts of plain values."""
    return dataclasses.asdict(config)


def to_yaml(config: AnyConfig) -> str:
    """A config as YAML, from which the same config can be read."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, width=120)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``{"a.b": value}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_below(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of ``sections`` or below one."""
    return any(key == section or key.startswith(section + ".") for section in sections)


def run_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The differences that make two resolved trees different runs, as ``key: old -> new``.

    The list is empty if a run with the tree ``old`` may continue with ``new``.
    """

    flat = flatten(new)
    dropout = flat.get("finetune.dropout", flat.get("model.dropout"))
    exempt = IDENTITY_EXEMPT if dropout else (*IDENTITY_EXEMPT, *WITHOUT_DROPOUT_EXEMPT)

    def kept(tree: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in flatten(tree).items() if not is_below(key, exempt)}

    before, after = kept(old), kept(new)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
