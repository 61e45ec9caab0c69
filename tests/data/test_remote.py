"""Inputs of packing from a server and from commands give what local files give."""

import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import webdataset
from data_samples import load_index, story, write_jsonl

from spdf_dist.config.errors import UserError
from spdf_dist.data import remote
from spdf_dist.data.pack import PackResult, pack
from spdf_dist.data.readers import check_pack_inputs


class Server(BaseHTTPRequestHandler):
    folder: Path
    short: int
    """The number of answers that end early."""

    def do_GET(self) -> None:
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if type(self).short:
            type(self).short -= 1
            content = content[:-700]
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(3):
        path = tmp_path / "served" / f"part-{number}.tar"
        path.parent.mkdir(exist_ok=True)
        with webdataset.TarWriter(str(path), encoder=False, mtime=0) as shard:
            for at in range(9):
                shard.write({"__key__": f"{at:05d}", "txt": story(9 * number + at).encode()})
        paths.append(path)
    return paths


@pytest.fixture
def address(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0)
    Server.folder, Server.short = shards[0].parent, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def packed(inputs: list[str], model: str, out: Path, workers: int = 1) -> PackResult:
    return pack(inputs, model, str(out), 32, workers=workers)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_urls_with_braces_pack_as_the_files_do_and_a_second_time_is_done_already(
    tmp_path: Path, shards: list[Path], sp_model: str, address: str
) -> None:
    packed([str(path) for path in shards], sp_model, tmp_path / "local")
    Server.short = 1  # the download continues after an answer that ends early
    given = [f"{address}/part-{{0..2}}.tar?token=secret"]
    assert not packed(given, sp_model, tmp_path / "out").already_done
    assert content(tmp_path / "out") == content(tmp_path / "local")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "out", "served"]  # no copy is left
    assert packed(given, sp_model, tmp_path / "out").already_done
    assert packed([str(path) for path in shards], sp_model, tmp_path / "out").already_done
    shards[1].write_bytes(shards[2].read_bytes())
    with pytest.raises(UserError, match="made from other input files"):
        packed(given, sp_model, tmp_path / "out")


def test_what_cannot_be_had_whole_is_an_error_and_nothing_is_written(
    tmp_path: Path, shards: list[Path], sp_model: str, address: str
) -> None:
    with pytest.raises(UserError, match=r"part-7\.tar cannot be downloaded \(Not Found\)"):
        packed([str(shards[0]), f"{address}/part-7.tar?token=secret"], sp_model, tmp_path / "out")
    Server.short = remote.TRIES
    with pytest.raises(UserError, match=r"cannot be downloaded.*ended early"):
        packed([f"{address}/part-0.tar"], sp_model, tmp_path / "out")
    with pytest.raises(UserError, match="false failed with exit code 1"):
        packed(["pipe:false"], sp_model, tmp_path / "out")
    with pytest.raises(UserError, match="cannot run no-such-program"):
        packed(["pipe:no-such-program x.tar"], sp_model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_commands_print_shards_and_no_shell_runs_them(tmp_path: Path, shards: list[Path], sp_model: str) -> None:
    folder = shards[0].parent
    given = [f"pipe:cat {shlex.quote(str(folder))}/part-{{0,1}}.tar", str(shards[2])]
    packed(given, sp_model, tmp_path / "out", workers=2)
    packed([str(path) for path in shards], sp_model, tmp_path / "local")
    ours, theirs = (load_index(tmp_path / name) for name in ("out", "local"))
    assert ours["shards"] == theirs["shards"]
    assert [entry["sha256"] for entry in ours["inputs"]] == [entry["sha256"] for entry in theirs["inputs"]]
    assert [entry["file"] for entry in ours["inputs"]] == [
        "pipe:cat-part-0.tar",
        "pipe:cat-part-1.tar",
        "part-2.tar",
    ]
    assert str(folder) not in json.dumps(ours)
    assert packed(given, sp_model, tmp_path / "out").already_done
    made = tmp_path / "made"
    with pytest.raises(UserError, match="failed with exit code"):  # cat gets `$(touch` as a word
        packed([f"pipe:cat $(touch {made})"], sp_model, tmp_path / "other")
    assert not made.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pipe:", "names no program"),
        ("pipe:zcat a.tar.gz | tar x", "no shell runs the command"),
        ("pipe:cat 'a.tar", "No closing quotation"),
        ("https://host/a.exe", "unknown kind of file"),
        ("s3://bucket/a.tar", "download it first"),
        ("https://host/{0..9999999}.tar", "more than 100000 names"),
    ],
)
def test_what_is_not_an_input_is_named(given: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_pack_inputs([given])


def test_urls_of_other_kinds_of_files_are_inputs_too(tmp_path: Path, sp_model: str, address: str) -> None:
    source = write_jsonl(Server.folder / "a.jsonl", [story(n) for n in range(9)])
    packed([f"{address}/a.jsonl"], sp_model, tmp_path / "out")
    packed([str(source)], sp_model, tmp_path / "local")
    assert content(tmp_path / "out") == content(tmp_path / "local")
