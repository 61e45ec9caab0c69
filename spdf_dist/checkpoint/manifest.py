"""The manifest of a checkpoint: the content of the folder, and the file of each slice of each global tensor.

``manifest.json`` is written last and contains its own digest. A folder is a complete checkpoint if its manifest is
valid and every listed file exists with its size; folder names have no meaning. docs/checkpoint_format.md describes the
format.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from spdf_dist.base.digests import check_seal
from spdf_dist.config.errors import NoPermissionError, UserError
from spdf_dist.config.load import build
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.config.validate import validate_model
from spdf_dist.model.architecture import TensorSpec, architecture_of
from spdf_dist.model.parameterization import Parameterization

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that has no such file. After any other error the file may be there and whole."""
FORMAT = "spdf-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
MASKS = "masks.safetensors"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer"

Kind = Literal["model", "exp_avg", "exp_avg_sq"]
KINDS: tuple[Kind, ...] = ("model", "exp_avg", "exp_avg_sq")
"""Kinds of content: weights, and first and second moments. Muon's momentum of a matrix is its first moment."""


OPTIMIZERS = ("adamw", "muon")


def optimizer_of(record: dict[str, Any] | None) -> str:
    """The optimizer of a manifest's ``optimizer``. AdamW's record has no name."""
    return str((record or {}).get("name", "adamw"))


def has_kind(kind: Kind, tensor: TensorSpec, optimizer: str) -> bool:
    """Whether a state of ``optimizer`` has this kind of content of ``tensor``. Muon keeps one moment of a matrix."""
    return not (kind == "exp_avg_sq" and optimizer == "muon" and tensor.is_hidden_matrix)


@dataclass(frozen=True)
class Slice:
    """A range [start, stop) of one global tensor, and the file that stores it."""

    file: str
    dim: int | None
    """The divided dimension; None: the slice is the whole tensor."""
    start: int
    stop: int


@dataclass(frozen=True)
class StoredTensor:
    """A global tensor: its shape, without vocabulary padding, and its slices by kind, in ascending order."""

    name: str
    shape: tuple[int, ...]
    sparse: bool
    """Whether only the kept values of the mask of the same name are stored."""
    slices: dict[Kind, tuple[Slice, ...]]
    pruned_nonzero: dict[Kind, int]
    """Number of pruned entries that were not zero when the tensor was saved; they are not stored."""


@dataclass(frozen=True)
class StoredMask:
    """A mask: its shape [out, in], number of kept entries and digest (``spdf_dist.sparsity.masks.mask_digest``)."""

    shape: tuple[int, int]
    kept: int
    sha256: str


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and SHA-256 (hex) of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A parsed ``manifest.json``. ``tree`` is its JSON value."""

    step: int
    consumed_tokens: int
    kind: str
    model: ModelConfig
    sparsity: SparsityConfig | None
    parameterization: Parameterization
    tensors: dict[str, StoredTensor]
    masks: dict[str, StoredMask]
    files: dict[str, StoredFile]
    optimizer: dict[str, Any] | None
    state: dict[str, Any]
    rank_state: list[Any]
    source: dict[str, Any] | None
    sha256: str
    """SHA-256 of the manifest file. It identifies the checkpoint's content, because the manifest lists all digests."""
    tree: dict[str, Any]


OPTIONAL_KEYS = ("parameterization",)
"""`parameterization` is present if it is not the standard one."""
KEYS = (
    *("format", "version", "versions", "git_commit"),
    *(field.name for field in fields(Manifest) if field.name not in ("sha256", "tree", *OPTIONAL_KEYS)),
)
"""The keys of a manifest beside its digest. All are required, and only those of OPTIONAL_KEYS may be added."""


def key_of(name: str, kind: Kind) -> str:
    """The key of a slice inside its safetensors file."""
    return name if kind == "model" else f"{kind}/{name}"


def global_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every global tensor of a model by name, in the order of the architecture's table."""
    return {name: tensor.shape for name, tensor in architecture_of(model).tensors.items()}


def is_manifest(path: Path) -> bool:
    """Whether ``path`` is a JSON file in the format of a checkpoint's manifest. Other files may have the same name."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and tree.get("format") == FORMAT


def read_manifest(folder: Path) -> Manifest:
    """Parse ``folder/manifest.json``.

    Raises:
        UserError: the file is missing, is not JSON, has another format or version, or is damaged.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        tree = json.loads(content)
    except OSError as error:
        if error.errno not in ABSENT:
            raise NoPermissionError(f"{path} cannot be read: {error.strerror}") from None
        raise UserError(
            f"{folder} is not a complete checkpoint: {MANIFEST} cannot be read ({error.strerror})"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON; take another checkpoint") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise UserError(f"{path} is not the manifest of a checkpoint: its format is not '{FORMAT}'")
    if tree.get("version") != VERSION:
        raise UserError(
            f"{path}: format version {tree.get('version')!r} is not known (this program reads version {VERSION}); "
            f"load it with the program that wrote it"
        )
    try:
        check_seal(content, tree, "format")
        return parse(tree, hashlib.sha256(content).hexdigest())
    except (ValueError, UserError) as error:
        raise UserError(f"{path} is damaged: {error}; take another checkpoint") from None
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged: {what}; take another checkpoint") from None


def parse(tree: dict[str, Any], sha256: str) -> Manifest:
    """A manifest's JSON as typed data. Raises UserError or a built-in exception if it is not valid."""
    check_keys(
        "the manifest", {key: value for key, value in tree.items() if key not in ("digest", *OPTIONAL_KEYS)}, KEYS
    )
    sparsity = tree["sparsity"]
    model = build(ModelConfig, tree["model"], "model")
    if model.num_layers > len(tree["tensors"]):  # checked before the table of all tensors is built
        raise ValueError(f"{len(tree['tensors'])} tensors are too few for {model.num_layers} layers")
    manifest = Manifest(
        step=count(tree["step"]),
        consumed_tokens=count(tree["consumed_tokens"]),
        kind=text(tree["kind"]),
        model=model,
        sparsity=None if sparsity is None else build(SparsityConfig, sparsity, "sparsity"),
        parameterization=build(Parameterization, tree.get("parameterization", {}), "parameterization"),
        tensors={name: parse_tensor(name, tensor) for name, tensor in tree["tensors"].items()},
        masks={name: parse_mask(name, mask) for name, mask in tree["masks"].items()},
        files={safe_name(name): parse_file(name, file) for name, file in tree["files"].items()},
        optimizer=tree["optimizer"],
        state=tree["state"],
        rank_state=tree["rank_state"],
        source=tree["source"],
        sha256=sha256,
        tree=tree,
    )
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Raise UserError, ValueError or KeyError unless the parts of a manifest are consistent."""
    validate_model(manifest.model)
    for key in ("optimizer", "state", "source"):
        if not isinstance(manifest.tree[key], dict if key == "state" else dict | None):
            raise ValueError(f"{key} is not an object")
    if not isinstance(manifest.rank_state, list):
        raise ValueError("rank_state is not a list")
    for name, mask in manifest.masks.items():
        if mask.shape != manifest.tensors[name].shape:
            raise ValueError(f"the mask of {name} has another shape than {name}")
    stored = {kind for tensor in manifest.tensors.values() for kind in tensor.slices}
    specs, optimizer = architecture_of(manifest.model).tensors, optimizer_of(manifest.optimizer)
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"the optimizer {optimizer[:40]!r} is not known")
    for tensor in manifest.tensors.values():
        for kind in KINDS:
            if kind == "model" or (kind in stored and has_kind(kind, specs[tensor.name], optimizer)):
                check_cover(f"{kind} of {tensor.name}", tensor.shape, tensor.slices.get(kind, ()))
        for part in itertools.chain(*tensor.slices.values()):
            if part.file not in manifest.files:
                raise ValueError(f"{tensor.name} lies in {part.file}, which is not listed")


def parse_tensor(name: str, tree: dict[str, Any]) -> StoredTensor:
    """Parse one entry of ``tensors``."""
    check_keys(name, tree, ("shape", "sparse", "slices", "pruned_nonzero"))
    check_keys(f"slices of {name}", tree["slices"], tuple(tree["pruned_nonzero"]))
    for kind in tree["slices"]:
        if kind not in KINDS:
            raise ValueError(f"{name} has slices of an unknown kind {kind[:40]!r}")
    slices = {kind: tuple(map(parse_slice, tree["slices"][kind])) for kind in KINDS if kind in tree["slices"]}
    pruned = {kind: count(tree["pruned_nonzero"][kind]) for kind in slices}
    if not isinstance(tree["sparse"], bool):
        raise ValueError(f"sparse of {name} is neither true nor false")
    return StoredTensor(name, tuple(map(count, tree["shape"])), tree["sparse"], slices, pruned)


def parse_slice(tree: dict[str, Any]) -> Slice:
    """Parse one entry of a tensor's ``slices``."""
    check_keys("a slice", tree, ("file", "dim", "start", "stop"))
    dim = None if tree["dim"] is None else count(tree["dim"])
    return Slice(text(tree["file"]), dim, count(tree["start"]), count(tree["stop"]))


def parse_mask(name: str, tree: dict[str, Any]) -> StoredMask:
    """Parse one entry of ``masks``."""
    check_keys(f"the mask of {name}", tree, ("shape", "kept", "sha256"))
    rows, columns = map(count, tree["shape"])
    if count(tree["kept"]) > rows * columns:
        raise ValueError(f"the mask of {name} keeps {tree['kept']} of {rows * columns} entries")
    return StoredMask((rows, columns), tree["kept"], sha256_text(tree["sha256"]))


def parse_file(name: str, tree: dict[str, Any]) -> StoredFile:
    """Parse one entry of ``files``."""
    check_keys(name, tree, ("bytes", "sha256"))
    return StoredFile(count(tree["bytes"]), sha256_text(tree["sha256"]))


def check_keys(what: str, tree: Any, keys: Sequence[str]) -> None:
    """Raise ValueError unless ``tree`` is an object with exactly these keys."""
    if not isinstance(tree, dict):
        raise ValueError(f"{what} is not an object")
    for key in keys:
        if key not in tree:
            raise ValueError(f"{what} lacks '{key}'")
    for key in tree:
        if key not in keys:
            raise ValueError(f"{what} has an unknown key {key[:40]!r}")


def text(value: Any) -> str:
    """``value`` if it is text; otherwise raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    return value


def sha256_text(value: Any) -> str:
    """``value`` if it is a SHA-256 in hex; otherwise raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{value!r:.80} is not a SHA-256")
    return value


def count(value: Any) -> int:
    """``value`` if it is an integer that is not negative; otherwise raises ValueError."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def check_cover(what: str, shape: tuple[int, ...], parts: Sequence[Slice]) -> None:
    """Raise ValueError unless the slices, in ascending order, cover the whole tensor exactly once."""
    dims = {part.dim for part in parts}
    if len(dims) > 1:
        raise ValueError(f"{what} is cut along different dimensions")
    dim = parts[0].dim if parts else 0
    if dim is None:
        if len(parts) != 1:
            raise ValueError(f"{what} is written by {len(parts)} ranks")
        return
    if dim >= len(shape):
        raise ValueError(f"{what} is cut along dimension {dim} of {len(shape)}")
    at = 0
    for part in parts:
        if part.start != at:
            raise ValueError(f"{what}: slices end at {at} and begin at {part.start}")
        at = part.stop
    if at != shape[dim]:
        raise ValueError(f"{what} is incomplete: its slices end at {at} of shape {shape}")


def safe_name(name: str) -> str:
    """``name`` if the relative path stays inside its folder; otherwise raises ValueError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"file name {name!r} leaves the checkpoint")
    return name


def whole_manifest(folder: Path) -> Manifest:
    """The manifest of a complete checkpoint. Checks sizes but not digests.

    Raises:
        NoPermissionError: a file may not or cannot be read. Another checkpoint must not silently take its place.
        UserError: the checkpoint is not complete.
    """
    manifest = read_manifest(folder)
    for name, file in manifest.files.items():
        try:
            with (folder / name).open("rb") as content:
                size = os.fstat(content.fileno()).st_size
        except OSError as error:
            if error.errno not in ABSENT:
                raise NoPermissionError(f"{folder / name} cannot be read: {error.strerror}") from None
            what = "its masks are missing: " if name == MASKS else ""
            text = f"{folder} is not a complete checkpoint: {what}{name} is not there; take another checkpoint"
            raise UserError(text) from None
        if size != file.bytes:
            text = f"{folder / name} is damaged: {size} bytes instead of {file.bytes}; take another checkpoint"
            raise UserError(text)
    return manifest


def problem(folder: Path) -> str | None:
    """The reason why ``folder`` is not a complete checkpoint, or None if it is one. Raises NoPermissionError."""
    try:
        whole_manifest(folder)
    except NoPermissionError:
        raise
    except UserError as error:
        return str(error)
    return None
