"""Damaged files of every kind. Each must be used or refused in one line, fast, in bounded memory, without a traceback.

For kinds with digests, a file that is used must be the original one.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np

from chaos.mutations import mutate
from spdf_dist.config.errors import EXIT_BAD_INPUT, SpdfError, exit_code_of

SECONDS = 20
"""Longest time for one file."""
GROWTH_KB = 400_000
"""Maximum memory that one file may add to the process."""


@dataclass
class Kind:
    """A kind of file: a folder with intact files, the files in it to damage, and the function that reads them."""

    name: str
    make: Callable[[Path], None]
    files: tuple[str, ...]
    use: Callable[[Path], object]
    sealed: bool = False
    """Whether every change must be detected, unless the result is equal."""


@dataclass
class Count:
    """Counts of the results of one kind."""

    tried: int = 0
    used: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)


class TooSlow(BaseException):
    """A file took longer than ``SECONDS``."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TooSlow in the block after this many seconds."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(kind: Kind, count: int, seed: int, work: Path) -> Count:
    """Damage the files of one kind ``count`` times."""
    rng = random.Random(f"{seed} {kind.name}")
    good = work / kind.name.replace(" ", "_")
    good.mkdir()
    kind.make(good)
    expected = kind.use(good)
    result = Count()
    contents = {name: (good / name).read_bytes() for name in kind.files}
    for number in range(count):
        name = rng.choice(kind.files)
        damaged = mutate(contents[name], rng)
        (good / name).write_bytes(damaged)
        result.tried += 1
        problem = attempt(kind, good, expected, damaged == contents[name], result)
        if problem is not None:
            kept = work / f"failure-{kind.name.replace(' ', '_')}-{number}"
            shutil.copytree(good, kept, symlinks=True)
            result.failures.append(f"{name}: {problem} (kept in {kept}; seed {seed}, number {number})")
        (good / name).write_bytes(contents[name])
    shutil.rmtree(good)
    return result


def attempt(kind: Kind, folder: Path, expected: object, same: bool, result: Count) -> str | None:
    """Use one damaged file. Returns a description of the failure, or None."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    said = io.StringIO()
    try:
        with limited(SECONDS), contextlib.redirect_stderr(said):
            found = kind.use(folder)
    except SpdfError as error:
        result.refused += 1
        if "\n" in str(error) or len(str(error)) > 2000:
            return f"not one line: {str(error)[:300]!r}"
    except OSError as error:  # the command line reports these on one line
        result.refused += 1
        return None if exit_code_of(error) == EXIT_BAD_INPUT else repr(error)
    except TooSlow:
        return f"took more than {SECONDS} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception_only(error)).strip()[:300] + " at " + place_of(error)
    else:
        result.used += 1
        if kind.sealed and not same and found != expected:
            return "other content was used without a word"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > GROWTH_KB:
        return f"took {grown // 1000} MB in {time.monotonic() - began:.1f} s"
    return None


def place_of(error: BaseException) -> str:
    """The last line of our own code in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "spdf_" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


# ---- the kinds ------------------------------------------------------------------------------------------------------

TEXTS = [
    f"document {n} tells of the number {n * n} and of {n % 7} other things\n\nin a second part" for n in range(120)
]
E2E = 'mr,ref\n"name[The Mill], eatType[pub]","The Mill is a pub."\n"name[Aromi], area[riverside]",Aromi is there.\n'
WEBNLG_XML = (
    "<benchmark><entries>"
    + "".join(
        f"<entry category='City' eid='Id{n}'><originaltripleset><otriple>A | r | B</otriple></originaltripleset>"
        f"<modifiedtripleset><mtriple>A{n} | is_in | B</mtriple></modifiedtripleset>"
        f"<lex comment='good' lid='Id1'>A{n} is in B.</lex></entry>"
        for n in range(4)
    )
    + "</entries></benchmark>"
)
WEBNLG_JSON = {
    "entries": [
        {
            str(n): {
                "category": "City",
                "modifiedtripleset": [{"subject": "A", "property": "p", "object": str(n)}],
                "lexicalisations": [{"comment": "good", "lex": "A is."}],
            }
        }
        for n in range(1, 4)
    ]
}
DART_JSON = [{"tripleset": [["A", "R", str(n)]], "annotations": [{"source": "x", "text": f"A {n}."}]} for n in range(4)]
CURATION = 'url,article_content,summary\nhttp://a,"An article, long.",A summary.\nhttp://b,Another one.,Short.\n'
WORKFLOW = """
variants: {dense: {sparsity.level: 0.0}, s75: {sparsity.level: 0.75}}
jobs:
  pretrain: {kind: pretrain, config: gpt2_small, set: {seed: 3}, grid: {training.lr: [1e-3, 2e-3]}}
clusters: {big: {partition: p, env: {A: 1}, setup: [module load x]}}
"""


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes one file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def jsonl() -> str:
    return "".join(json.dumps({"text": text, "meta": {"pile_set_name": "Houses"}}) + "\n" for text in TEXTS)


def read_texts(name: str) -> Callable[[Path], object]:
    """Reads a text file as packing does. Problems are not failures."""
    from spdf_dist.data.readers import check_inputs, documents

    return lambda folder: [document.text for document in documents(check_inputs([folder / name]), lambda problem: None)]


def load(task: str, name: str, split: str = "train") -> Callable[[Path], object]:
    from spdf_dist.data.tasks import load_task

    return lambda folder: load_task(task, folder / name, split)


def make_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": TEXTS}), folder / "t.parquet")


def make_zst(folder: Path) -> None:
    import zstandard

    (folder / "t.jsonl.zst").write_bytes(zstandard.compress(jsonl().encode()))


def make_sentencepiece(folder: Path) -> None:
    from spdf_dist.data.tokenizer_training import train_sentencepiece

    train_sentencepiece(TEXTS, 320, folder / "t.model")


def use_tokenizer(name: str) -> Callable[[Path], object]:
    from spdf_dist.data.tokenizer import load_tokenizer

    def use(folder: Path) -> object:
        tokenizer = load_tokenizer(folder / name)
        ids = tokenizer.encode(TEXTS[3])
        return tokenizer.vocab_size, tokenizer.eod_id, ids, tokenizer.decode(ids)

    return use


def make_gpt2(folder: Path) -> None:
    import tokenizers

    signs = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in "thoe" for b in "nesi"]
    entries = [*signs, *(a + b for a, b in merges), "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def make_tokenizer_json(folder: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_packed(folder: Path) -> None:
    from spdf_dist.data.pack import pack

    make_sentencepiece(folder)
    (folder / "t.jsonl").write_text(jsonl())
    pack([str(folder / "t.jsonl")], str(folder / "t.model"), str(folder / "packed"), 16, 1, 40)


def use_packed(folder: Path) -> object:
    from spdf_dist.config.schema import DatasetEntry
    from spdf_dist.data.loader import open_mixture
    from spdf_dist.data.tokenizer import load_tokenizer

    mixture = open_mixture([DatasetEntry(str(folder / "packed"))], 16, 1, 320)
    tokens = mixture.batch(0, mixture.num_sequences)
    tokenizer = load_tokenizer(folder / "packed/tokenizer")
    if tokenizer.digest != mixture.tokenizer_digest:
        raise SpdfError("another tokenizer: found by its digest")
    return tokens.tolist()


def make_megatron(folder: Path) -> None:
    from spdf_dist.data.megatron import HEADER, MAGIC
    from spdf_dist.data.verify import verify_dataset

    lengths = np.full(50, 40, "<i4")
    tokens = (np.arange(2000) * 7 % 300).astype("<u2")
    offsets = (np.cumsum(lengths) - lengths).astype("<i8") * 2
    head = HEADER.pack(MAGIC, 1, 8, 50, 51)
    bounds = np.arange(51, dtype="<i8")
    (folder / "c.idx").write_bytes(head + lengths.tobytes() + offsets.tobytes() + bounds.tobytes())
    (folder / "c.bin").write_bytes(tokens.tobytes())
    verify_dataset(str(folder / "c"))


def use_megatron(folder: Path) -> object:
    from spdf_dist.data.megatron import MegatronDataset

    data = MegatronDataset(folder / "c", 16, 300)
    return data.read(np.arange(data.num_sequences)).tolist()


def make_checkpoint(folder: Path) -> None:
    import torch

    from spdf_dist.checkpoint.manifest import KINDS, global_shapes
    from spdf_dist.checkpoint.write import single_writer, whole
    from spdf_dist.config.schema import ModelConfig, SparsityConfig
    from spdf_dist.sparsity.masks import RandomMasks

    model = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=4, seq_length=16, vocab_size=320)
    sparsity = SparsityConfig(level=0.75, seed=7)
    masks = dict(RandomMasks(model, sparsity))
    generator = torch.Generator().manual_seed(1)

    def shards() -> Iterator[tuple]:
        for kind in KINDS:
            for name, shape in global_shapes(model).items():
                mask = torch.from_numpy(np.array(masks[name])) if name in masks else None
                tensor = torch.randn(shape, generator=generator)
                yield kind, whole(name, tensor, mask), tensor if mask is None else tensor * mask

    make_sentencepiece(folder)
    single_writer(folder / "step_3", 3).write(
        shards(),
        masks=masks,
        config_yaml="seed: 1\n",
        tokenizer=folder / "t.model",
        manifest={"kind": "pretrain", "model": asdict(model), "sparsity": asdict(sparsity), "consumed_tokens": 96},
    )


def use_checkpoint(folder: Path) -> object:
    from spdf_dist.checkpoint.manifest import KINDS
    from spdf_dist.checkpoint.read import Checkpoint

    checkpoint = Checkpoint(folder / "step_3")
    checkpoint.tokenizer_dir  # noqa: B018 - checks its files
    sums = [checkpoint.read_array(name, kind).tobytes() for kind in KINDS for name in checkpoint.manifest.tensors]
    return checkpoint.step, checkpoint.manifest.consumed_tokens, checkpoint.config_yaml, sums


def use_config(folder: Path) -> object:
    from spdf_dist.config.load import load_config
    from spdf_dist.config.schema import PretrainConfig

    return load_config(PretrainConfig, str(folder / "c.yaml"))


def use_workflow(folder: Path) -> object:
    from spdf_launcher.plan import plan
    from spdf_launcher.workflow import load_workflow

    return len(plan(load_workflow(str(folder / "w.yaml")), folder / "wf", ranks_from_launcher=False))


def use_hostfile(folder: Path) -> object:
    from spdf_launcher.hostfile import read_hostfile

    return read_hostfile(folder / "h")


def make_config(folder: Path) -> None:
    from spdf_dist.config.load import find_config

    shutil.copy(find_config("gpt2_small"), folder / "c.yaml")


CHECKPOINT_FILES = (
    *("step_3/manifest.json", "step_3/model-00000.safetensors", "step_3/optim-00000.safetensors"),
    *("step_3/masks.safetensors", "step_3/config.yaml", "step_3/tokenizer/tokenizer.model"),
)


def kinds() -> list[Kind]:
    """Every kind of file that a user provides or a run writes."""
    text, task = jsonl(), json.dumps(WEBNLG_JSON)
    text_gz, e2e_gz = gzip.compress(text.encode(), mtime=0), gzip.compress(E2E.encode(), mtime=0)
    return [
        Kind("config", make_config, ("c.yaml",), use_config),
        Kind("workflow", write("w.yaml", WORKFLOW), ("w.yaml",), use_workflow),
        Kind("hostfile", write("h", "h1 slots=8\nh2 slots=8\n# h3\n"), ("h",), use_hostfile),
        Kind("text jsonl", write("t.jsonl", text), ("t.jsonl",), read_texts("t.jsonl")),
        Kind(
            "text gz",
            write("t.jsonl.gz", text_gz),
            ("t.jsonl.gz",),
            read_texts("t.jsonl.gz"),
        ),
        Kind("text zst", make_zst, ("t.jsonl.zst",), read_texts("t.jsonl.zst")),
        Kind("text txt", write("t.txt", "\n".join(TEXTS)), ("t.txt",), read_texts("t.txt")),
        Kind("text parquet", make_parquet, ("t.parquet",), read_texts("t.parquet")),
        Kind("task e2e", write("e.csv", E2E), ("e.csv",), load("e2e", "e.csv")),
        Kind(
            "task e2e gz",
            write("e.csv.gz", e2e_gz),
            ("e.csv.gz",),
            load("e2e", "e.csv.gz"),
        ),
        Kind("task webnlg xml", write("w.xml", WEBNLG_XML), ("w.xml",), load("webnlg", "w.xml")),
        Kind("task webnlg json", write("w.json", task), ("w.json",), load("webnlg", "w.json", "test")),
        Kind("task dart json", write("d.json", json.dumps(DART_JSON)), ("d.json",), load("dart", "d.json")),
        Kind("task dart xml", write("d.xml", WEBNLG_XML), ("d.xml",), load("dart", "d.xml", "test")),
        Kind("task curation", write("c.csv", CURATION), ("c.csv",), load("curation", "c.csv")),
        Kind("tokenizer sentencepiece", make_sentencepiece, ("t.model",), use_tokenizer("t.model")),
        Kind("tokenizer gpt2", make_gpt2, ("encoder.json", "vocab.bpe"), use_tokenizer(".")),
        Kind("tokenizer json", make_tokenizer_json, ("tokenizer.json",), use_tokenizer("tokenizer.json")),
        Kind(
            "packed data",
            make_packed,
            (
                "packed/index.json",
                "packed/shard-000000.tar",
                "packed/shard-000001.tar",
                "packed/tokenizer/tokenizer.model",
            ),
            use_packed,
            sealed=True,
        ),
        Kind("megatron data", make_megatron, ("c.idx", "c.bin", "c.sums"), use_megatron, sealed=True),
        Kind("checkpoint", make_checkpoint, CHECKPOINT_FILES, use_checkpoint, sealed=True),
    ]


def fuzz_all(count: int, seed: int, only: str = "") -> dict[str, Count]:
    """Test ``count`` damaged files of every kind whose name contains ``only``."""
    work = Path(tempfile.mkdtemp(prefix="spdf-fuzz-"))
    found = {kind.name: fuzz(kind, count, seed, work) for kind in kinds() if only in kind.name}
    if not any(result.failures for result in found.values()):
        shutil.rmtree(work)
    return found
