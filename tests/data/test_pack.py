import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from data_samples import load_index, read_folder, story, write_jsonl

from spdf_dist.base.collective import SingleProcess
from spdf_dist.cli.main import main
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.data import tokenizing
from spdf_dist.data.loader import PackedDataset
from spdf_dist.data.pack import pack
from spdf_dist.data.readers import Chunk, Problem
from spdf_dist.data.shards import write_shard
from spdf_dist.data.tokenizer import load_tokenizer


def expected_stream(texts: list[str], model: str) -> list[int]:
    tokenizer = load_tokenizer(model)
    return [i for text in texts for i in [*tokenizer.encode(text), tokenizer.eod_id]]


def test_every_token_is_predicted_exactly_once(tmp_path: Path, sp_model: str, three_files: list[str]) -> None:
    seq_len = 37
    result = pack(three_files, sp_model, str(tmp_path / "out"), seq_len, workers=1, sequences_per_shard=20)
    texts = (
        [story(n) for n in range(30)] + ["".join(story(n) for n in range(30, 45))] + [story(n) for n in range(45, 60)]
    )
    stream = expected_stream(texts, sp_model)
    index = load_index(tmp_path / "out")
    dataset = PackedDataset(tmp_path / "out")
    sequences = dataset.read(np.arange(dataset.num_sequences))
    assert len(index["shards"]) > 3
    assert sequences.shape == (index["sequences"], seq_len + 1)
    targets = sequences[:, 1:].ravel().tolist()
    assert targets == stream[1 : 1 + len(targets)]
    assert sequences[:, :-1].ravel().tolist() == stream[: len(targets)]
    assert index["tokens"] == len(stream) == 1 + len(targets) + index["dropped_tokens"]
    assert 0 <= index["dropped_tokens"] < seq_len
    assert index["documents"] == 46
    assert index["sets"]["Stories"] == {"documents": 30, "tokens": len(expected_stream(texts[:30], sp_model))}
    assert index["sets"]["unnamed"]["documents"] == 16
    assert sum(count["tokens"] for count in index["sets"].values()) == len(stream)
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert index["tokenizer"] == {"digest": tokenizer.digest, "vocab_size": 400, "eod_id": tokenizer.eod_id}
    assert index["schema_version"] == 1
    assert result.index["problem_count"] == 0


def test_gpt2_ids_are_stored_as_uint16(tmp_path: Path, gpt2_folder: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["Hello world"] * 9)
    pack([str(source)], gpt2_folder, str(tmp_path / "out"), 5, workers=1)
    dataset = PackedDataset(tmp_path / "out")
    assert dataset.read(np.array([0])).tolist() == [[15496, 995, 50256, 15496, 995, 50256]]
    assert load_index(tmp_path / "out")["dtype"] == "uint16"


def test_the_bytes_do_not_hang_on_workers(tmp_path: Path, sp_model: str, three_files: list[str]) -> None:
    folders = []
    for workers in (1, 2, 3):
        out = tmp_path / f"out{workers}"
        pack(three_files, sp_model, str(out), 64, workers=workers, sequences_per_shard=30)
        folders.append(read_folder(out))
    assert folders[0] == folders[1] == folders[2]
    assert "shard-000001.tar" in folders[0]


def test_chunks_merge_in_order(
    tmp_path: Path, sp_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many chunks per file, some with problems, in worker processes."""
    monkeypatch.setattr("spdf_dist.data.readers.BLOCK_BYTES", 2000)
    path = write_jsonl(tmp_path / "a.jsonl", [story(n) for n in range(120)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[50] = b"broken\n"
    path.write_bytes(b"".join(lines))
    for workers in (1, 2):
        pack([str(path)], sp_model, str(tmp_path / f"out{workers}"), 64, workers=workers)
    assert read_folder(tmp_path / "out1") == read_folder(tmp_path / "out2")
    dataset = PackedDataset(tmp_path / "out1")
    stream = expected_stream([story(n) for n in range(120) if n != 50], sp_model)
    targets = dataset.read(np.arange(dataset.num_sequences))[:, 1:].ravel().tolist()
    assert targets == stream[1 : 1 + len(targets)]
    assert f"{path}:51: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EROFS, 2)])
def test_a_full_shared_memory_is_named_and_not_the_output(
    number: int,
    code: int,
    tmp_path: Path,
    sp_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    path = write_jsonl(tmp_path / "a.jsonl", [story(n) for n in range(20)])
    words = ["data", "pack", "--input", str(path), "--tokenizer", sp_model, "--out", str(tmp_path / "out")]
    assert main([*words, "--seq-len", "16", "--workers", "2"]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"spdf data: /dev/shm: {os.strerror(number)}") and "--workers 1" in line
    assert [left.name for left in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.distributed
def test_the_bytes_do_not_hang_on_mpi_ranks(tmp_path: Path, sp_model: str, three_files: list[str]) -> None:
    pack(three_files, sp_model, str(tmp_path / "alone"), 64, workers=1)
    mpirun = Path(sys.executable).with_name("mpirun")
    command = [str(mpirun), "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "-n", "2", sys.executable, "-m"]
    command += ["spdf_dist", "data", "pack", "--input", *three_files, "--tokenizer", sp_model]
    command += ["--out", str(tmp_path / "ranks"), "--seq-len", "64", "--workers", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ranks"] == 2
    assert read_folder(tmp_path / "ranks") == read_folder(tmp_path / "alone")
    command[command.index("64")] = "63"
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert refused.stderr.count("holds other packed data (seq_len 64, asked 63)") == 1
    Path(three_files[2]).unlink()
    missing = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert missing.returncode == 2
    assert missing.stderr.count("c.jsonl does not exist") == 1


@pytest.mark.distributed
def test_tasks_of_a_slurm_step_without_pmix_split_the_files(
    tmp_path: Path, sp_model: str, three_files: list[str]
) -> None:
    pack(three_files, sp_model, str(tmp_path / "alone"), 64, workers=1)
    command = [sys.executable, "-m", "spdf_dist", "data", "pack", "--input", *three_files, "--tokenizer", sp_model]
    command += ["--out", str(tmp_path / "ranks"), "--seq-len", "64", "--workers", "1"]
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    tasks = [
        subprocess.Popen(
            command, env={**os.environ, **step, "SLURM_PROCID": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert "split the files by SLURM_PROCID" in errors[0]
    assert read_folder(tmp_path / "ranks") == read_folder(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "in", "ranks"]


def test_plain_webdataset_reads_the_shards(tmp_path: Path, sp_model: str, three_files: list[str]) -> None:
    import webdataset

    pack(three_files, sp_model, str(tmp_path / "out"), 64, workers=1, sequences_per_shard=50)
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    dataset = PackedDataset(tmp_path / "out")
    assert [sample["__key__"] for sample in samples] == [f"{n:012d}" for n in range(dataset.num_sequences)]
    assert np.array_equal(np.stack([s["npy"] for s in samples]), dataset.read(np.arange(dataset.num_sequences)))


def test_members_lie_where_the_index_says_and_tell_nothing_of_the_machine(
    tmp_path: Path, sp_model: str, three_files: list[str]
) -> None:
    pack(three_files, sp_model, str(tmp_path / "out"), 64, workers=1)
    rule = load_index(tmp_path / "out")["members"]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        members = tar.getmembers()
        contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert [m.gname for m in members] == [hashlib.blake2b(content, digest_size=8).hexdigest() for content in contents]
    assert [m.offset for m in members] == [n * rule["stride"] for n in range(len(members))]
    assert {(m.offset_data - m.offset + m.size, m.mtime, m.uid, m.gid, m.uname) for m in members} == {
        (rule["data_offset"] + rule["data_bytes"], 0, 0, 0, "")
    }


@pytest.mark.parametrize(
    ("dtype", "sequences", "sha256"),
    [
        ("uint16", 3, "ea4ba2640c1a0f17152545a1189db7bc0704eb103a0d7bdfc6bcbdc754cd6a4b"),
        ("uint32", 40, "6f64ba986430f18ef5f4af4eaaab656cf7adf4fb93c8ef63214dbca343fa7828"),
    ],
)
def test_the_bytes_of_a_shard_are_those_of_every_version(
    tmp_path: Path, dtype: str, sequences: int, sha256: str
) -> None:
    ids = np.arange(8 * sequences + 1)
    path = tmp_path / "shard-000000.tar"
    entry = write_shard(path, 0, sequences, 8, dtype, lambda start, count: ids[start : start + count])
    content = path.read_bytes()
    assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert entry.sha256 == sha256


def test_problems_are_counted_and_the_exit_code_says_so(
    tmp_path: Path, sp_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", [story(n) for n in range(20)])
    broken = write_jsonl(tmp_path / "broken.jsonl", [story(20), story(21)])
    broken.write_bytes(broken.read_bytes() + b'{"text": "half\n{"text": "\xff"}\n')
    (tmp_path / "empty.jsonl").write_bytes(b"")
    content = "".join(json.dumps({"text": story(n)}) + "\n" for n in range(22, 2000)).encode()
    compressed = zstandard.compress(content)
    (tmp_path / "cut.jsonl.zst").write_bytes(compressed[: len(compressed) // 2])
    out = tmp_path / "out"
    names = [str(good), *(str(tmp_path / name) for name in ("broken.jsonl", "empty.jsonl", "cut.jsonl.zst"))]
    command = ["data", "pack", "--input", *names, "--tokenizer", sp_model, "--out", str(out), "--seq-len", "50"]
    assert main([*command, "--workers", "1", "--json"]) == 1
    said = capsys.readouterr()
    assert f"{broken}:3: not valid JSON" in said.err
    assert f"{broken}:4: invalid UTF-8" in said.err
    assert f"{tmp_path / 'empty.jsonl'}: the file is empty" in said.err
    assert "cut.jsonl.zst:" in said.err
    assert "truncated" in said.err
    answer = json.loads(said.out)
    assert answer["problem_count"] == 4
    index = load_index(out)
    assert [entry["problem_count"] for entry in index["inputs"]] == [0, 2, 1, 1]
    assert [(p["file"], p["line"]) for p in index["problems"][:3]] == [
        ("broken.jsonl", 3),
        ("broken.jsonl", 4),
        ("empty.jsonl", 0),
    ]
    assert index["documents"] > 22
    PackedDataset(out).verify()


def test_wrong_arguments_write_nothing(tmp_path: Path, sp_model: str, three_files: list[str]) -> None:
    before = read_folder(tmp_path)
    out = str(tmp_path / "out")
    for inputs, tokenizer, seq_len, words in [
        ([*three_files, str(tmp_path / "none.jsonl")], sp_model, 64, "none.jsonl does not exist"),
        (three_files, str(tmp_path / "none.model"), 64, "does not exist"),
        (three_files, sp_model, 0, "at least 1"),
        (three_files, sp_model, 10**6, "fewer than one sequence"),
        (three_files, sp_model, 64, None),
    ]:
        if words is None:
            (tmp_path / "out").write_text("a file")
            before["out"] = b"a file"
            words = "is a file"
        with pytest.raises(UserError, match=words):
            pack(inputs, tokenizer, out, seq_len, workers=1)
        assert read_folder(tmp_path) == before


def test_a_file_that_is_given_twice_is_named(
    tmp_path: Path, sp_model: str, three_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = three_files
    link = tmp_path / "link.jsonl"
    link.symlink_to(first)
    pack([first, second], sp_model, str(tmp_path / "once"), 16, workers=1)
    assert capsys.readouterr().err == ""
    pack([first, second, str(link)], sp_model, str(tmp_path / "twice"), 16, workers=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: --input: 1 of the files are given more than once") and f"{first} (2 times)" in line


@pytest.mark.parametrize("change", ["grows", "is replaced", "disappears"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, sp_model: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [story(n) for n in range(50)])
    chunks = tokenizing.read_chunks

    def read_chunks(path: Path) -> Iterator[Chunk | Problem]:
        yield from chunks(path)
        if change == "grows":
            with path.open("a") as file:
                file.write('{"text": "more"}\n')
        else:
            path.rename(path.with_name("old.jsonl"))
            if change == "is replaced":
                shutil.copyfile(path.with_name("old.jsonl"), path)

    monkeypatch.setattr(tokenizing, "read_chunks", read_chunks)
    with pytest.raises((UserError, FileNotFoundError), match=r"changed while it was read|a\.jsonl"):
        pack([str(path)], sp_model, str(tmp_path / "out"), 16, workers=1)
    assert not list(tmp_path.glob("*out*"))


def test_input_without_any_text_names_its_problem(tmp_path: Path, sp_model: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n' * 3)
    with pytest.raises(UserError, match=r"holds 0 tokens.*the first of its 3 problems: a\.jsonl:1: no 'text' string"):
        pack([str(tmp_path / "a.jsonl")], sp_model, str(tmp_path / "out"), 16, workers=1)


def test_an_existing_folder_is_kept(tmp_path: Path, sp_model: str, three_files: list[str]) -> None:
    out = tmp_path / "out"
    pack(three_files, sp_model, str(out), 64, workers=1)
    before = read_folder(out)
    assert pack(three_files, sp_model, str(out), 64, workers=1).already_done
    for inputs, seq_len, words in [
        (three_files, 65, "seq_len 64, asked 65"),
        (three_files[:2], 64, "other input files"),
        (three_files[::-1], 64, "other input files"),
    ]:
        with pytest.raises(UserError, match=words):
            pack(inputs, sp_model, str(out), seq_len, workers=1)
    Path(three_files[0]).write_bytes(Path(three_files[0]).read_bytes().replace(b"fox", b"cat"))
    with pytest.raises(UserError, match="other input files"):
        pack(three_files, sp_model, str(out), 64, workers=1)
    assert read_folder(out) == before
    Path(three_files[0]).write_bytes(Path(three_files[0]).read_bytes().replace(b"cat", b"fox"))
    for name in ("shard-000000.tar", "tokenizer/tokenizer.model", "index.json"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])
        with pytest.raises(UserError, match="damaged"):
            pack(three_files, sp_model, str(out), 64, workers=1)
        (out / name).write_bytes(content)
    assert pack(three_files, sp_model, str(out), 64, workers=1).already_done
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds no packed data"):
        pack(three_files, sp_model, str(mine), 64, workers=1)
    assert read_folder(mine) == {"thesis.txt": b"x"}


def test_out_may_be_the_empty_folder_we_are_in(
    tmp_path: Path, sp_model: str, three_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pack(three_files, sp_model, ".", 64, workers=1)
    assert PackedDataset(tmp_path / "here").num_sequences > 10


def test_a_failure_leaves_nothing_that_looks_whole(
    tmp_path: Path, sp_model: str, three_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device", "shard-000000.tar")

    monkeypatch.setattr("spdf_dist.data.pack.write_shard", full_disk)
    with pytest.raises(SpdfError, match="No space left on device") as caught:
        pack(three_files, sp_model, str(tmp_path / "out"), 64, workers=1)
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_error_on_one_rank_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from spdf_dist.data.pack import together

    class Pair(SingleProcess):
        def allgather(self, value: object) -> list[object]:
            return [value, [(2, "bad file on rank 1"), None]]

    with pytest.raises(UserError, match="bad file on rank 1"):
        together(Pair(), "packed", lambda: "fine here")


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, sp_model: str, three_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    command = ["data", "pack", "--input", *three_files, "--tokenizer", sp_model, "--seq-len", "64"]
    assert main([*command, "--out", str(tmp_path / "file" / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "is a file" in lines[0]


def test_torchrun_is_refused(
    tmp_path: Path, sp_model: str, three_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="mpirun or srun"):
        pack(three_files, sp_model, str(tmp_path / "out"), 64)


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """The child processes of ``pid``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_pack_that_is_ended_leaves_no_process_and_nothing_that_looks_whole(
    tmp_path: Path, sp_model: str, how: signal.Signals
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [story(n, 1000) for n in range(8000)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "spdf_dist", "data", "pack", "--input", str(source), "--tokenizer", sp_model]
    command += ["--out", str(out), "--seq-len", "64", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(stream.stat().st_size > 0 for stream in tmp_path.glob(".out.*.tmp/000000.tokens")))
    started = children(process.pid)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert len(started) >= 2
    wait_for(lambda: not any(running(pid) for pid in started))
    assert "Traceback" not in said
    assert not out.exists()
    if how != signal.SIGKILL:
        assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
        return
    source.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:5]))
    pack([str(source)], sp_model, str(out), 64, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_real_text(tmp_path: Path, gpt2_folder: str) -> None:
    source = Path(gpt2_folder).parent / "text" / "val.jsonl.zst"
    copy = tmp_path / "val.jsonl.zst"
    shutil.copy(source, copy)
    result = pack([str(copy)], gpt2_folder, str(tmp_path / "out"), 256, workers=2)
    assert result.index["problem_count"] == 0
    assert len(result.index["sets"]) >= 3
    assert result.index["documents"] == sum(1 for _ in zstandard.open(copy, "rt", encoding="utf-8"))


def test_an_input_whose_name_is_no_utf8_is_packed(tmp_path: Path, sp_model: str) -> None:
    source = write_jsonl(tmp_path / "caf\udce9.jsonl", [story(1)])
    pack([str(source)], sp_model, str(tmp_path / "out"), 8, workers=1)
    assert load_index(tmp_path / "out")["inputs"][0]["file"] == source.name


def test_characters_that_a_tokenizer_lacks_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "<unk>": 1, "ab": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    lines = write_jsonl(tmp_path / "x.jsonl", ["ab cd ab", "ab ab", "é ef"])
    arguments = ["--input", str(lines), "--tokenizer", str(tmp_path / "tokenizer.json"), "--seq-len", "4"]
    for workers in ("1", "2"):
        out = tmp_path / f"packed{workers}"
        assert main(["data", "pack", *arguments, "--out", str(out), "--workers", workers]) == 0
        assert "WARNING: 3 of 10 tokens are unknown" in capsys.readouterr().err
        assert PackedDataset(out).index["unknown_tokens"] == 3


def test_packing_does_not_import_torch(tmp_path: Path, sp_model: str, three_files: list[str]) -> None:
    program = f"""
import sys
from spdf_dist.data.pack import pack
pack({three_files!r}, {sp_model!r}, {str(tmp_path / "out")!r}, 64, workers=1)
assert "torch" not in sys.modules
import webdataset
webdataset.WebDataset  # the whole package
"""
    subprocess.run([sys.executable, "-c", program], check=True)
