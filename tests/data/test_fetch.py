import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.data import fetch as module
from spdf_dist.data.fetch import SOURCES, Source, fetch, matches

CONTENT = bytes(range(256)) * 40


class Server(BaseHTTPRequestHandler):
    ranges: list[str | None]
    at_most: int | None

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        type(self).ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and "ranged" in self.path else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: type(self).at_most])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    Server.ranges = []
    Server.at_most = None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def offer(monkeypatch: pytest.MonkeyPatch, *urls: str, content: bytes = CONTENT) -> None:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    monkeypatch.setattr(module, "SOURCES", {"set": [Source(url, digest) for url in urls]})


def test_a_download_is_checked_and_kept(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{address}/ranged/a.bin", f"{address}/b.bin")
    paths = fetch("set", str(tmp_path))
    assert [path.name for path in paths] == ["a.bin", "b.bin"]
    assert all(path.read_bytes() == CONTENT for path in paths)
    asked = len(Server.ranges)
    assert fetch("set", str(tmp_path)) == paths
    assert len(Server.ranges) == asked


@pytest.mark.parametrize("have", [1000, len(CONTENT)])
@pytest.mark.parametrize("path", ["ranged/a.bin", "a.bin"])
def test_a_broken_download_goes_on(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, path: str, have: int
) -> None:
    offer(monkeypatch, f"{address}/{path}")
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:have])
    assert fetch("set", str(tmp_path))[0].read_bytes() == CONTENT
    assert Server.ranges == [f"bytes={have}-"]
    assert not (tmp_path / "a.bin.part").exists()


def test_a_server_that_hangs_up_early_leaves_what_came(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, f"{address}/ranged/a.bin")
    Server.at_most = 3000
    with pytest.raises(UserError, match="ended early, 3000 of 10240 bytes"):
        fetch("set", str(tmp_path))
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:3000]
    Server.at_most = None
    assert fetch("set", str(tmp_path))[0].read_bytes() == CONTENT
    assert Server.ranges == [None, "bytes=3000-"]


def test_other_content_is_refused(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{address}/a.bin", content=b"what was published")
    with pytest.raises(SpdfError, match="not the official one") as caught:
        fetch("set", str(tmp_path))
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists and is not the official file"):
        fetch("set", str(tmp_path))
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_offline_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    offer(monkeypatch, "http://127.0.0.1:9/there/a.bin", "http://127.0.0.1:9/there/b.bin")
    with pytest.raises(UserError, match="cannot be reached") as caught:
        fetch("set", str(tmp_path))
    assert f"put into {tmp_path}" in str(caught.value)
    for name in ("a.bin", "b.bin"):
        assert f"{name} from http://127.0.0.1:9/there/{name} (sha256:" in str(caught.value)


def test_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'webnlg'"):
        fetch("webnl", str(tmp_path))
    with pytest.raises(UserError, match="no longer served"):
        fetch("pile", str(tmp_path))


def test_the_vocabulary_at_hand_is_the_official_one(gpt2_folder: str) -> None:
    for source in SOURCES["gpt2-vocab"]:
        assert matches(Path(gpt2_folder) / source.name, source.digest)


def test_a_git_blob_id_is_checked(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert matches(tmp_path / "x", "git:ce013625030ba8dba906f756967f9e9ca394464a")
    assert not matches(tmp_path / "x", "git:ce013625030ba8dba906f756967f9e9ca394464b")


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("content")
    (tmp_path / "x.part").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        module.download((tmp_path / "source").as_uri(), tmp_path / "x.part")
    assert not (tmp_path / "victim").exists()
