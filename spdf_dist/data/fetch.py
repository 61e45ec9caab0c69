"""Downloads data sets from their official sources and checks their digests (``spdf data fetch``)."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from spdf_dist.base.digests import file_digest
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.suggest import nearest
from spdf_dist.data.placing import made

TIMEOUT_SECONDS = 30
BLOCK_BYTES = 1 << 20

E2E = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/ab0d967dd5729ce455ef14ba9ffafc456a335264"
WEBNLG = (
    "https://raw.githubusercontent.com/microsoft/LoRA/c4593f060e6a368d7bb5af5273b8e42810cdef90"
    "/examples/NLG/data/webnlg_challenge_2017"
)
DART = "https://raw.githubusercontent.com/Yale-LILY/dart/bb644b12ec1d0264f96a31145534b9a94f6ff5f5/data/v1.1.1"
GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"

PILE = (
    "the Pile is no longer served by its authors, and the original hub copy is withdrawn. What can still be had: "
    "copies that people kept (00.jsonl.zst to 29.jsonl.zst), pile-uncopyrighted and the deduplicated Pile as "
    "parquet or .jsonl.zst on public hubs, and tokenized Megatron .bin/.idx files. Put what you have on disk, then "
    "`spdf data pack --input FILES...` for text, or name a .bin/.idx prefix in data.train as it is"
)


@dataclass(frozen=True)
class Source:
    """A file at its official URL. ``digest`` is ``sha256:...``, or ``git:...`` with the blob id in its repository."""

    url: str
    digest: str

    @property
    def name(self) -> str:
        """The name of the file on disk."""
        return self.url.rsplit("/", 1)[1]


SOURCES = {
    "e2e": [
        Source(f"{E2E}/trainset.csv", "sha256:f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6"),
        Source(f"{E2E}/devset.csv", "sha256:fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9"),
        Source(f"{E2E}/testset.csv", "sha256:9b90c8f88feae14d9e1ef37350b14d17294c5958e90a3f1a7846590ee97bdbb9"),
        Source(f"{E2E}/testset_w_refs.csv", "sha256:edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"),
    ],
    # The challenge publishes XML. LoRA's results use this JSON form.
    "webnlg": [
        Source(f"{WEBNLG}/train.json", "sha256:180edb6011360608c8548d4551366a9d55f140cbf9bc9397fbf4d97f6a89c639"),
        Source(f"{WEBNLG}/dev.json", "sha256:50f5a2c24d760bc84ba3e852707cd3b43b0cf2da035b425f87945a2440880488"),
        Source(f"{WEBNLG}/test.json", "sha256:2574896b23b5959d1a0cd4bb501ffbeff1a11790a9996c4cb8efed289149ff4f"),
    ],
    "dart": [
        Source(f"{DART}/dart-v1.1.1-full-train.json", "git:773adb6db19640ab5328eaddec7ba7495b1702cf"),
        Source(
            f"{DART}/dart-v1.1.1-full-dev.json",
            "sha256:56606eac12baa7f0ddb81c61890f9f1a95bace4df8f8989852786358fe5d2b88",
        ),
        Source(
            f"{DART}/dart-v1.1.1-full-test.xml",
            "sha256:4f6994d633030278798c114555549a13202780fe0d78ee2e7ac7dcce45a8e233",
        ),
    ],
    "gpt2-vocab": [
        Source(f"{GPT2}/encoder.json", "sha256:196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
        Source(f"{GPT2}/vocab.bpe", "sha256:1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    ],
}

NAMES = (*SOURCES, "pile")
"""What ``spdf data fetch`` knows."""


def fetch(name: str, out: str) -> list[Path]:
    """Download the files of the data set ``name`` into ``out``. Complete files are kept.

    An interrupted download resumes from ``FILE.part``.

    Raises:
        UserError: the name is unknown or is the Pile, a source cannot be reached (the message lists the missing
            files), or a file exists with other content.
        SpdfError: the downloaded content does not have the published digest.
    """
    if name == "pile":
        raise UserError(PILE)
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}'{nearest(name, NAMES)}")
    folder = made(Path(out))
    paths = []
    for source in SOURCES[name]:
        try:
            paths.append(fetch_file(source, folder / source.name))
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            missing = [other for other in SOURCES[name] if not (folder / other.name).exists()]
            raise UserError(
                f"{source.url} cannot be reached ({reason}); get by other means and put into {folder}: "
                + ", ".join(f"{other.name} from {other.url} ({other.digest})" for other in missing)
            ) from error
    return paths


def fetch_file(source: Source, target: Path) -> Path:
    """Download one file unless it exists."""
    if target.exists():
        if not matches(target, source.digest):
            raise UserError(f"{target} exists and is not the official file ({source.digest}); move it away")
        return target
    part = target.with_name(f"{target.name}.part")
    download(source.url, part)
    if not matches(part, source.digest):
        part.unlink()
        raise SpdfError(
            f"the file from {source.url} is not the official one ({source.digest}) and was removed; try again"
        )
    part.rename(target)
    return target


def download(url: str, part: Path) -> None:
    """Append the missing part of ``url`` to ``part``, with a progress bar on standard error.

    Raises:
        ConnectionError: fewer bytes arrived than announced. They are kept.
        OSError: ``part`` is a link (ELOOP) or cannot be written.
    """
    from spdf_dist.base.progress_bar import ProgressBar

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there are no more bytes; the digest decides whether the file is complete
            return
        raise
    with answer:
        if answer.status != 206:  # the server ignores the range and sends the whole file
            have = 0
        length = int(answer.headers.get("Content-Length", 0))
        got = 0
        with (
            open(part, "ab" if have else "wb", opener=no_link) as file,
            ProgressBar(
                total=have + length, initial=have, unit="B", unit_scale=True, desc=part.stem, file=sys.stderr
            ) as bar,
        ):
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
                got += len(block)
    # read() with a size does not raise when the peer closes the connection early.
    if got < length:
        raise ConnectionError(
            f"ended early, {have + got} of {have + length} bytes; run the same command again to continue from there"
        )


def no_link(name: str, flags: int) -> int:
    """Open a file, but no link: the name of a partial file is fixed, so that the next attempt finds it."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def matches(path: Path, digest: str) -> bool:
    """Whether the file has this digest."""
    kind, expected = digest.split(":")
    if kind == "sha256":
        return file_digest(path) == expected
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == expected
