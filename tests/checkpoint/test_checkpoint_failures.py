"""Interrupted saves, full disks, damaged files: partial checkpoints are never used, complete ones are never lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from checkpoint_job import (
    SPARSE,
    make_tensors,
    manifest_of,
    masks_of,
    responsible,
    save,
    save_with_tokenizer,
    write_gpt2_tokenizer,
)

from spdf_dist.base import atomic_files
from spdf_dist.checkpoint import manifest, write
from spdf_dist.checkpoint.densify import densify
from spdf_dist.checkpoint.find import damaged, whole_checkpoints
from spdf_dist.checkpoint.manifest import MASKS, Manifest, Slice, check_cover, read_manifest
from spdf_dist.checkpoint.read import Checkpoint, is_whole, latest, resolve
from spdf_dist.checkpoint.stream import SafetensorsStream
from spdf_dist.checkpoint.write import delete, prune, single_writer
from spdf_dist.cli.main import main
from spdf_dist.config.errors import SpdfError, UserError


def test_latest_goes_by_content(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        save(tmp_path, step)
    (tmp_path / "step_20").rename(tmp_path / "step_3")
    assert latest(tmp_path) == tmp_path / "step_3"
    (tmp_path / "step_3" / "optim-00000.safetensors").unlink()
    assert latest(tmp_path) == tmp_path / "step_10"
    os.truncate(tmp_path / "step_10" / "model-00000.safetensors", 100)
    assert latest(tmp_path) == tmp_path / "step_5"
    (tmp_path / "step_5" / "manifest.json").write_text("{")
    assert latest(tmp_path) is None and latest(tmp_path / "nowhere") is None
    with pytest.raises(UserError, match=r"holds no complete checkpoint: .*damaged"):
        resolve(tmp_path)


def test_damaged_ones_are_told_from_unfinished_ones(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    (tmp_path / "step_20").mkdir()
    (tmp_path / "step_15").rename(tmp_path / "step_15.tmp")
    assert damaged(tmp_path) == [] and damaged(tmp_path / "nowhere") == []
    (tmp_path / "step_5" / MASKS).unlink()
    os.truncate(tmp_path / "step_10" / "model-00000.safetensors", 100)
    first, second = damaged(tmp_path)
    assert "step_5 is not a complete checkpoint: its masks are missing" in first
    assert "step_10/model-00000.safetensors is damaged" in second
    with pytest.raises(UserError, match=r"holds no complete checkpoint: .*step_10/model-00000\.safetensors is damaged"):
        resolve(tmp_path)


@pytest.mark.parametrize("loss", ["manifest.json", "model-00000.safetensors"])
def test_a_later_checkpoint_that_is_passed_over_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str
) -> None:
    """A folder that was copied in part. The commands took the checkpoint before it without a word."""
    for step in (5, 10, 15):
        save(tmp_path, step)
    (tmp_path / "step_5" / loss).unlink()
    assert resolve(tmp_path) == tmp_path / "step_15" and capsys.readouterr().err == ""
    (tmp_path / "step_15" / loss).unlink()
    assert resolve(tmp_path) == tmp_path / "step_10"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"WARNING: {tmp_path / 'step_15'} is not a complete checkpoint: ") and loss in line
    assert line.endswith(f"; {tmp_path / 'step_10'} is used")
    assert len(damaged(tmp_path)) == 2  # a run whose checkpoints are all like these does not start from nothing


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_checkpoint_may_vanish_while_the_latest_is_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A run that keeps few checkpoints deletes the oldest before or after another command reads its manifest."""
    for step in (5, 10):
        save(tmp_path, step)

    def read(folder: Path) -> Manifest:
        if folder.name == "step_5" and when == "before":
            shutil.rmtree(folder)
        found = read_manifest(folder)
        if folder.name == "step_5":
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr(manifest, "read_manifest", read)
    assert latest(tmp_path) == tmp_path / "step_10" and not (tmp_path / "step_5").exists()


def test_a_copy_of_a_checkpoint_does_not_take_its_place(tmp_path: Path) -> None:
    save(tmp_path, 5)
    shutil.copytree(tmp_path / "step_5", tmp_path / "zcopy")
    assert latest(tmp_path) == tmp_path / "step_5"


def test_folders_that_are_being_written_are_not_looked_into(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    (tmp_path / "step_10").rename(tmp_path / "step_10.tmp")
    assert latest(tmp_path) == tmp_path / "step_5"


def test_what_names_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run / "checkpoints", 5)
    save(run / "checkpoints", 7)
    (run / "manifest.json").write_text('{"schema_version": 1}')  # the file of a job, not of a checkpoint
    for path in (run, run / "checkpoints", run / "checkpoints" / "step_7"):
        assert resolve(path) == run / "checkpoints" / "step_7"
    assert resolve(run / "checkpoints" / "step_5") == run / "checkpoints" / "step_5"
    with pytest.raises(UserError, match="does not exist"):
        resolve(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        resolve(tmp_path / "empty")


def test_prune_keeps_the_newest_whole_ones(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    (tmp_path / "step_20" / "model-00000.safetensors").unlink()
    (tmp_path / "step_25.tmp").mkdir()
    (tmp_path / "notes.tmp").write_text("not ours")
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "step_10", "step_15", "step_20"]
    assert is_whole(tmp_path / "step_10") and is_whole(tmp_path / "step_15")


def test_prune_leaves_copies_of_the_user_alone(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    shutil.copytree(tmp_path / "step_5", tmp_path / "step_5.bak")
    (tmp_path / "step_10").rename(tmp_path / "step_10_old")
    prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10_old", "step_15", "step_5.bak"]


def test_prune_protects_a_step(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    (tmp_path / "step_5").rename(tmp_path / "best")
    prune(tmp_path, 1, protect=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step_20"]
    delete(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["step_20"]


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "step_5" / "model-00000.safetensors").write_bytes(b"")
    save(tmp_path, 5, consumed_tokens=99)
    assert Checkpoint(tmp_path).manifest.consumed_tokens == 99
    assert [path.name for path in tmp_path.iterdir()] == ["step_5"]


def fail_in_file(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Make the disk full from the third tensor of ``file`` on."""
    add = SafetensorsStream.add

    def full(self: SafetensorsStream, key: str, array: Any) -> None:
        if Path(self.file.name).name == file and len(self.header) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)
        add(self, key, array)

    monkeypatch.setattr(SafetensorsStream, "add", full)


@pytest.mark.parametrize("file", ["model-00001.safetensors", "optim-00000.safetensors", MASKS])
def test_full_disk_on_any_rank_fails_all_and_keeps_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    save(tmp_path, 5, 2)
    fail_in_file(monkeypatch, file)
    results = save(tmp_path, 10, 2)
    assert all(type(error) is SpdfError and error.exit_code == 1 for error in results)
    rank = 1 if "00001" in file else 0
    for error in results:
        assert f"step_10 was not saved: rank {rank}: No space left on device" in str(error)
        assert f"the last good checkpoint is {tmp_path / 'step_5'}" in str(error)
        assert "\n" not in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["step_5"]
    Checkpoint(tmp_path).verify()


def test_the_first_save_of_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in_file(monkeypatch, "model-00000.safetensors")
    (error,) = save(tmp_path, 5)
    assert str(error).endswith("; there is no earlier checkpoint")


def test_a_checkpoint_behind_a_link_is_replaced(tmp_path: Path) -> None:
    (folder,) = save(tmp_path / "run", 5)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert save(tmp_path / "run", 5, consumed_tokens=99) == [folder]
    assert Checkpoint(folder).manifest.consumed_tokens == 99 and not folder.is_symlink()
    assert is_whole(tmp_path / "elsewhere") and [path.name for path in folder.parent.iterdir()] == ["step_5"]


def test_a_failed_rank_still_draws_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The iterators may contain collectives in which other ranks wait."""
    fail_in_file(monkeypatch, "model-00000.safetensors")
    tensors = make_tensors({})
    drawn = 0

    def shards() -> Any:
        nonlocal drawn
        for item in responsible(0, 1, {}, tensors):
            drawn += 1
            yield item

    with pytest.raises(SpdfError, match="was not saved: rank 0: No space left on device") as raised:
        single_writer(tmp_path / "step_1", 1).write(
            shards(), masks=None, config_yaml="", tokenizer=None, manifest=manifest_of(None)
        )
    assert drawn == sum(len(part) for part in tensors.values())
    assert list(tmp_path.iterdir()) == []
    assert "checkpoint stays" not in str(raised.value)  # a command's output folder has no earlier checkpoints


LIMITED = """
import resource, sys
from pathlib import Path
from checkpoint_job import save
root = Path(sys.argv[1])
assert save(root, 5) == [root / "step_5"]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
(error,) = save(root, 10)
print(error)
"""


def test_a_real_write_that_does_not_fit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert "step_10 was not saved: rank 0: File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step_5"]
    assert latest(tmp_path) == tmp_path / "step_5"


SLOW = """
import sys, time
from pathlib import Path
import checkpoint_job as job
from spdf_dist.checkpoint.write import single_writer
tensors = job.make_tensors({})
def shards():
    for at, item in enumerate(job.responsible(0, 1, {}, tensors)):
        if at == 40:
            print("half", flush=True)
            time.sleep(60)
        yield item
single_writer(Path(sys.argv[1]) / "step_10", 10).write(
    shards(), masks=None, config_yaml="", tokenizer=None, manifest=job.manifest_of(None)
)
"""


def test_killed_in_mid_write(tmp_path: Path) -> None:
    save(tmp_path, 5)
    child = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path], cwd=Path(__file__).parent, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    (left,) = tmp_path.glob(".step_10.*.tmp")
    assert left.is_dir()
    (tmp_path / "step_9.tmp").mkdir()  # of an older version
    assert latest(tmp_path) == tmp_path / "step_5"
    save(tmp_path, 10)
    assert latest(tmp_path) == tmp_path / "step_10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_5"]


def test_every_moment_of_a_save_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the folder at each write, rename and sync. A new checkpoint is complete only after its manifest's rename."""
    root = tmp_path / "root"
    save(root, 5)
    seen: list[int] = []
    real = write.sync

    def look(path: Path) -> None:
        real(path)
        copy = tmp_path / "copy"
        shutil.copytree(root, copy)
        found = latest(copy)
        assert found is not None
        Checkpoint(found).verify()
        seen.append(Checkpoint(found).step)
        shutil.rmtree(copy)

    monkeypatch.setattr(write, "sync", look)
    monkeypatch.setattr(atomic_files, "sync", look)
    save(root, 10)
    assert seen[-1] == 10 and set(seen[:-1]) == {5} and len(seen) > 4


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest's JSON and remove its digest, as in older manifests."""
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    tree.pop("digest", None)
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("call", ["is_dir", "iterdir"])
def test_a_checkpoint_that_is_deleted_during_a_search_is_not_damaged(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = tmp_path / "step_9"
    going.mkdir()
    (going / "weights").write_text("x")
    asked = getattr(Path, call)

    def and_delete(path: Path) -> object:
        answer = list(asked(path)) if call == "iterdir" else asked(path)
        if path == going:
            shutil.rmtree(path, ignore_errors=True)
        return answer

    monkeypatch.setattr(Path, call, and_delete)
    assert damaged(tmp_path) == []
    assert not going.exists()


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    save(tmp_path, 5, 2)
    flip(tmp_path / "step_5" / "model-00001.safetensors")
    checkpoint = Checkpoint(tmp_path)
    checkpoint.read("ln_f.weight")  # is in the file of rank 0
    with pytest.raises(UserError, match=r"model-00001\.safetensors is damaged"):
        checkpoint.read("layers.0.W_Q")
    with pytest.raises(UserError, match=r"model-00001\.safetensors is damaged"):
        checkpoint.verify()


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    save(tmp_path, 5, 2)
    os.truncate(tmp_path / "step_5" / "optim-00001.safetensors", 1000)
    with pytest.raises(UserError, match=r"optim-00001\.safetensors is damaged: 1000 bytes instead of"):
        Checkpoint(tmp_path / "step_5")


@pytest.mark.parametrize(
    ("command", "name"),
    [("densify", "tokenizer/vocab.bpe"), ("export-hf", "tokenizer/vocab.bpe"), ("densify", "config.yaml")],
)
def test_a_damaged_tokenizer_or_config_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    source = save_with_tokenizer(tmp_path / "a", write_gpt2_tokenizer(tmp_path / "t"))
    flip(source / name)
    assert main([command, str(source), str(tmp_path / "out")]) == 2
    assert f"{source / name} is damaged: its SHA-256 is not the manifest's" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "t"]


def test_files_beside_a_tokenizer_are_left_out(tmp_path: Path) -> None:
    source = save_with_tokenizer(tmp_path / "a", write_gpt2_tokenizer(tmp_path / "t"))
    (source / "tokenizer" / "notes.txt").write_text("not the checkpoint's")
    densify(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "tokenizer").iterdir()) == ["encoder.json", "vocab.bpe"]
    (source / "tokenizer" / "tokenizer_config.json").write_text("GPT-2's two files do not use it")
    assert Checkpoint(source).tokenizer_dir is not None
    (source / "tokenizer" / "tokenizer.model").write_text("it would be taken first")
    with pytest.raises(UserError, match=r"tokenizer\.model does not belong to the checkpoint: remove it"):
        densify(source, tmp_path / "other")
    (bare,) = save(tmp_path / "b", 5)
    write_gpt2_tokenizer(bare / "tokenizer")
    assert Checkpoint(bare).tokenizer_dir is None


def test_missing_masks(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "step_5" / MASKS).unlink()
    for path in (tmp_path, tmp_path / "step_5"):
        with pytest.raises(UserError, match="its masks are missing"):
            Checkpoint(path)
    edit(tmp_path / "step_5", lambda tree: (tree["files"].pop(MASKS), tree["masks"].clear()))
    with pytest.raises(UserError, match=r"the masks are missing: layers\.0\.W_Q is sparse"):
        Checkpoint(tmp_path)


def test_masks_that_do_not_match_their_digest(tmp_path: Path) -> None:
    save(tmp_path, 5)
    edit(tmp_path / "step_5", lambda tree: tree["masks"]["layers.0.W_Q"].update(sha256="0" * 64))
    with pytest.raises(UserError, match=r"the mask of layers\.0\.W_Q does not match its digest"):
        Checkpoint(tmp_path).read("layers.0.W_Q")


def test_values_and_masks_of_different_checkpoints(tmp_path: Path) -> None:
    save(tmp_path / "a", 5)
    save(tmp_path / "b", 5, sparsity=replace(SPARSE, level=0.5))
    mine, other = tmp_path / "a" / "step_5", tmp_path / "b" / "step_5"
    shutil.copyfile(other / MASKS, mine / MASKS)
    foreign = json.loads((other / "manifest.json").read_text())
    edit(mine, lambda tree: tree["masks"].update(foreign["masks"]))
    edit(mine, lambda tree: tree["files"].update({MASKS: foreign["files"][MASKS]}))
    with pytest.raises(UserError, match=r"layers\.0\.W_Q has \(16,\) values, not 32"):
        Checkpoint(mine).read("layers.0.W_Q")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "is incomplete"),
        ([(None, 0, 8), (None, 0, 8)], "is written by 2 ranks"),
        ([(None, 0, 8), (0, 0, 8)], "along different dimensions"),
        ([(2, 0, 8)], "cut along dimension 2 of 2"),
        ([(0, 0, 4), (0, 3, 8)], "slices end at 4 and begin at 3"),
        ([(0, 0, 4), (0, 5, 8)], "slices end at 4 and begin at 5"),
        ([(0, 0, 4), (0, 4, 7)], "its slices end at 7"),
    ],
)
def test_slices_that_are_not_the_tensor(parts: list[tuple[int | None, int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_cover("model of x", (8, 8), [Slice("f", *part) for part in parts])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(version=2), "format version 2 is not known"),
        (lambda tree: tree.pop("tensors"), "damaged: the manifest lacks 'tensors'"),
        (lambda tree: tree["tensors"].pop("ln_f.bias"), "its tensors are not those of its model"),
        (lambda tree: tree["files"].update({"../../etc/passwd": {"bytes": 1, "sha256": ""}}), "leaves the checkpoint"),
        (
            lambda tree: tree["tensors"]["layers.0.b_Q"]["slices"].update(model=[]),
            r"model of layers\.0\.b_Q is incomplete",
        ),
        (lambda tree: tree["tensors"]["ln_f.bias"]["slices"].clear(), r"slices of ln_f\.bias lacks 'model'"),
        (lambda tree: tree["tensors"]["ln_f.bias"].update(slices={}, pruned_nonzero={}), r"ln_f\.bias is incomplete"),
        (lambda tree: tree["tensors"]["ln_f.bias"]["slices"].pop("exp_avg"), r"slices of ln_f\.bias lacks 'exp_avg'"),
        (lambda tree: drop_kind(tree["tensors"]["ln_f.bias"], "exp_avg"), r"exp_avg of ln_f\.bias is incomplete"),
        (lambda tree: tree.update(extra=1), "the manifest has an unknown key 'extra'"),
        (lambda tree: rename(tree["tensors"]["ln_f.bias"]["slices"], "exp_avg", "exp_afg"), "lacks 'exp_avg'"),
        (lambda tree: rename(tree, "consumed_tokens", "consumed_tokenz"), "lacks 'consumed_tokens'"),
        (lambda tree: tree["model"].update(num_layers=10**9), "too few for 1000000000 layers"),
        (lambda tree: tree["model"].update(hidden_size=10**12), "1000000000000 is too large"),
        (lambda tree: tree.update(step="5"), "'5' is not a count"),
        (lambda tree: tree.update(kind=3), "3 is not a text"),
        (lambda tree: tree["files"][MASKS].update(sha256="x"), "'x' is not a SHA-256"),
        (lambda tree: tree["masks"]["layers.0.W_Q"].update(kept=10**6), "keeps 1000000 of 64 entries"),
        (lambda tree: tree.update(tensors=[]), "damaged"),
        (lambda tree: first_slice(tree).update(dim="x"), "'x' is not a count"),
        (lambda tree: first_slice(tree).update(dim=2), "cut along dimension 2 of 2"),
        (lambda tree: first_slice(tree).update(dim=[]), r"\[\] is not a count"),
        (lambda tree: first_slice(tree).update(start=-1), "-1 is not a count"),
        (lambda tree: first_slice(tree).update(stop=7), "its slices end at 7"),
        (lambda tree: first_slice(tree).pop("file"), "a slice lacks 'file'"),
        (lambda tree: tree["tensors"]["ln_f.bias"].update(slices=[]), r"slices of ln_f\.bias is not an object"),
        (lambda tree: tree["tensors"]["ln_f.bias"].update(sparse=0), "neither true nor false"),
        (lambda tree: tree["masks"]["layers.0.W_Q"].update(shape=[4]), "damaged: not enough values"),
        (
            lambda tree: tree["masks"]["layers.0.W_Q"].update(shape=[4, 16]),
            r"the mask of layers\.0\.W_Q has another shape",
        ),
        (lambda tree: tree["model"].update(num_attention_heads=3), "8 is not divisible by model.num_attention_heads 3"),
        (lambda tree: tree.update(state=[]), "state is not an object"),
        (lambda tree: tree.update(step=float("inf")), "inf is not a count"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    save(tmp_path, 5)
    edit(tmp_path / "step_5", change)
    with pytest.raises(UserError, match=message) as raised:
        Checkpoint(tmp_path / "step_5")
    assert "\n" not in str(raised.value)


def rename(tree: dict[str, Any], old: str, new: str) -> None:
    """Rename a key and keep its position."""
    items = [(new if key == old else key, value) for key, value in tree.items()]
    tree.clear()
    tree.update(items)


def drop_kind(tensor: dict[str, Any], kind: str) -> None:
    """Remove a tensor's slices of one kind."""
    tensor["slices"].pop(kind)
    tensor["pruned_nonzero"].pop(kind)


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = tmp_path / "step_5" / "manifest.json"
    content = path.read_bytes()
    random = Random(20)
    for bit in random.sample(range(8 * len(content)), 400):
        damaged_content = bytearray(content)
        damaged_content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged_content)
        with pytest.raises(UserError) as raised:
            Checkpoint(tmp_path / "step_5")
        assert "\n" not in str(raised.value), bit
    for size in random.sample(range(len(content)), 50):
        path.write_bytes(content[:size])
        with pytest.raises(UserError):
            Checkpoint(tmp_path / "step_5")


def test_a_manifest_without_a_digest_is_an_older_one(tmp_path: Path) -> None:
    save(tmp_path, 5)
    edit(tmp_path / "step_5", lambda tree: None)
    Checkpoint(tmp_path / "step_5").verify()


def first_slice(tree: dict[str, Any]) -> dict[str, Any]:
    """The first slice of a tensor with two dimensions."""
    found: dict[str, Any] = tree["tensors"]["embedding.word"]["slices"]["model"][0]
    return found


def test_a_manifest_that_is_no_json(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for content in ("[" * 100_000, "{"):
        (tmp_path / "step_5" / "manifest.json").write_text(content)
        with pytest.raises(UserError, match="it is not JSON"):
            Checkpoint(tmp_path / "step_5")


def test_slices_of_other_sizes_than_the_file_holds(tmp_path: Path) -> None:
    """The slices still cover the tensor."""
    (folder, _) = save(tmp_path, 5, 2)

    def move_the_cut(tree: dict[str, Any]) -> None:
        first, second = tree["tensors"]["layers.0.b_Q"]["slices"]["model"]
        first["stop"] = second["start"] = 3

    edit(folder, move_the_cut)
    with pytest.raises(UserError, match=r"model-00000\.safetensors is damaged: layers\.0\.b_Q has another shape"):
        Checkpoint(folder).read("layers.0.b_Q")
    with pytest.raises(UserError, match=r"layers\.0\.b_Q has another shape"):
        list(Checkpoint(folder).read_values("layers.0.b_Q"))


def test_a_count_of_kept_entries_that_is_not_the_masks(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 5)
    edit(folder, lambda tree: tree["masks"]["layers.0.W_Q"].update(kept=17))
    with pytest.raises(UserError, match=r"mask of layers\.0\.W_Q does not match"):
        Checkpoint(folder).read("layers.0.W_Q")


def without(name: str) -> Any:
    """All shards but one."""
    return (item for item in responsible(0, 1, {}, make_tensors({})) if item[1].name != name)


def test_a_tensor_that_nobody_writes(tmp_path: Path) -> None:
    with pytest.raises(SpdfError, match=r"layers\.1\.b_O is incomplete"):
        single_writer(tmp_path / "step_1", 1).write(
            without("layers.1.b_O"), masks=None, config_yaml="", tokenizer=None, manifest=manifest_of(None)
        )
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_two_ranks_write(tmp_path: Path) -> None:
    save_all = [item for item in responsible(0, 1, {}, make_tensors({}))]
    with pytest.raises(SpdfError, match="is written twice"):
        single_writer(tmp_path / "step_1", 1).write(
            [*save_all, save_all[0]], masks=None, config_yaml="", tokenizer=None, manifest=manifest_of(None)
        )


def test_sparse_pieces_need_their_mask(tmp_path: Path) -> None:
    masks = masks_of(SPARSE)
    shards = responsible(0, 1, masks, make_tensors(masks))
    with pytest.raises(SpdfError, match=r"layers\.0\.W_Q is sparse and its mask was not given"):
        single_writer(tmp_path / "step_2", 2).write(
            shards, masks=None, config_yaml="", tokenizer=None, manifest=manifest_of(SPARSE)
        )
    shards = responsible(0, 1, masks, make_tensors(masks))
    with pytest.raises(SpdfError, match=r"layers\.0\.W_Q has 16 values, which do not match the given mask"):
        single_writer(tmp_path / "step_2", 2).write(
            shards,
            masks=masks_of(replace(SPARSE, level=0.5)),
            config_yaml="",
            tokenizer=None,
            manifest=manifest_of(SPARSE),
        )


def test_bf16_copies_are_refused(tmp_path: Path) -> None:
    shards = ((kind, shard, tensor.bfloat16()) for kind, shard, tensor in responsible(0, 1, {}, make_tensors({})))
    with pytest.raises(SpdfError, match="checkpoints hold float32"):
        single_writer(tmp_path / "step_1", 1).write(
            shards, masks=None, config_yaml="", tokenizer=None, manifest=manifest_of(None)
        )


def test_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    assert {path.suffix for path in (tmp_path / "step_5").rglob("*") if path.is_file()} == {
        ".json",
        ".yaml",
        ".safetensors",
    }


def test_what_cannot_be_deleted_hinders_no_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **arguments: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))  # .nfsXXXX in a folder on NFS

    save(tmp_path, 5)
    save(tmp_path, 10)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    prune(tmp_path, 1)
    save(tmp_path, 15)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step_10", "step_15"]
    monkeypatch.undo()
    save(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_15", "step_20"]
