"""`spdf inspect` and `spdf densify`."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_job import MODEL, SPARSE, make_tensors, masks_of, save

from spdf_dist.checkpoint.hf_export import export_hf
from spdf_dist.checkpoint.manifest import global_shapes
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.stream import SafetensorsStream
from spdf_dist.cli.main import main
from spdf_dist.sparsity.masks import logical_weights, mask_digest


def inspect_json(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return summary


def test_inspect_counts_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = masks_of(SPARSE)
    save(tmp_path / "one", 5, 1)
    save(tmp_path / "two", 5, 2, values=False)
    one, two = (inspect_json(capsys, tmp_path / name) for name in ("one", "two"))
    assert one["weights"] == two["weights"]
    assert one["schema_version"] == 1 and one["step"] == 5 and one["consumed_tokens"] == 480
    assert one["pruned_nonzero"] == 0 and one["linear_sparsity"] == 0.75
    assert [weight["name"] for weight in one["weights"]] == list(logical_weights(MODEL))
    for weight in one["weights"]:
        mask = masks[weight["name"]]
        assert weight["shape"] == list(mask.shape) and weight["sparsity"] == 0.75
        assert weight["nnz"] == weight["nonzero"] == mask.sum() == mask.size - mask.size * 3 // 4
        assert weight["mask_sha256"] == mask_digest(mask) and weight["pruned_nonzero"] == 0
    total = sum(math.prod(shape) for shape in global_shapes(MODEL).values())
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert (one["parameters"], one["kept_parameters"]) == (total, total - pruned)
    for kind in ("model", "exp_avg", "exp_avg_sq"):
        assert one["stored_bytes"][kind] == 4 * (total - pruned)


def test_inspect_reports_pruned_entries_that_were_not_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_tensors(masks_of(SPARSE))
    tensors["model"]["layers.0.W_I"].fill_(1.0)
    tensors["exp_avg"]["layers.1.W_O"].fill_(1.0)
    save(tmp_path, 5, 2, tensors=tensors, values=False)
    summary = inspect_json(capsys, tmp_path)
    found = {weight["name"]: weight["pruned_nonzero"] for weight in summary["weights"] if weight["pruned_nonzero"]}
    assert found == {"layers.0.W_I": 120, "layers.1.W_O": 120} and summary["pruned_nonzero"] == 240
    main(["inspect", str(tmp_path)])
    assert "pruned and not zero, in weights and moments: 240" in capsys.readouterr().out


def test_inspect_tells_the_model_state_of_sparse_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 5)
    summary = inspect_json(capsys, tmp_path)
    masks = masks_of(SPARSE)
    total = summary["state"]
    assert total["patterns"] == len(masks)
    assert total["dense_bytes"] == 16 * sum(mask.size for mask in masks.values())
    for path in ("compact", "generated"):
        if "missing" in total[path]:
            continue
        assert total[path]["prepare_s"] > 0 and total[path]["backends"]
        assert total[path]["values_bytes"] == 16 * sum(int(mask.sum()) for mask in masks.values())
        for key in ("bytes", "index_bytes", "code_bytes"):
            assert total[path][key] == sum(weight["state"][path][key] for weight in summary["weights"])
        for weight in summary["weights"]:
            state = weight["state"][path]
            assert weight["state"]["dense_bytes"] == 16 * math.prod(weight["shape"])
            assert state["bytes"] == 16 * weight["nnz"] + state["index_bytes"] + state["code_bytes"]
            assert state["of_dense"] == state["bytes"] / weight["state"]["dense_bytes"]
    assert total["compact"]["code_bytes"] == 0
    main(["inspect", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "model state in training" in shown and f"{len(masks)} patterns prepared in" in shown
    assert any(line.startswith("all ") and f"{total['dense_bytes']:,}" in line for line in shown.splitlines())


def test_inspect_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_tensors({})
    tensors["model"]["layers.0.W_Q"][0, :3] = 0.0
    save(tmp_path, 5, sparsity=None, tensors=tensors)
    summary = inspect_json(capsys, tmp_path)
    first = summary["weights"][0]
    assert first == {
        "name": "layers.0.W_Q",
        "shape": [8, 8],
        "sparsity": 0.0,
        "nnz": 64,
        "mask_sha256": None,
        "pruned_nonzero": 0,
        "nonzero": 61,
    }
    assert summary["sparsity"] is None and summary["parameters"] == summary["kept_parameters"]


def test_inspect_follows_reactivated_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fine-tuned model with the masks of its source checkpoint."""
    masks = masks_of(SPARSE)
    tensors = make_tensors({})
    name = "layers.0.W_D"
    tensors["model"][name] = torch.zeros(8, 8)
    row, column = np.argwhere(~masks[name])[0]
    tensors["model"][name][row, column] = -3.0

    from checkpoint_job import manifest_of, responsible

    from spdf_dist.checkpoint.write import single_writer

    single_writer(tmp_path / "step_1", 1).write(
        responsible(0, 1, {}, tensors), masks=masks, config_yaml="", tokenizer=None, manifest=manifest_of(None)
    )
    summary = {weight["name"]: weight for weight in inspect_json(capsys, tmp_path)["weights"]}
    assert summary[name]["nnz"] == 64 and summary[name]["mask_sha256"] is None
    assert summary[name]["reactivated"] == {
        "count": 48,
        "nonzero": 1,
        "norm": 3.0,
        "mask_sha256": mask_digest(masks[name]),
    }


def test_densify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_tensors(masks_of(SPARSE))
    (source, _) = save(tmp_path / "run" / "checkpoints", 5, 2, tensors=tensors)
    out = tmp_path / "dense"
    assert main(["densify", str(tmp_path / "run"), str(out)]) == 0
    assert "864 of 1,152 weights reactivated" in capsys.readouterr().out
    found = Checkpoint(out)
    assert found.step == 0 and found.sparsity is None and not found.has("exp_avg")
    assert not any(tensor.sparse for tensor in found.manifest.tensors.values()) and not list(out.glob("optim*"))
    assert {name: mask.sha256 for name, mask in found.manifest.masks.items()} == {
        name: mask.sha256 for name, mask in Checkpoint(source).manifest.masks.items()
    }
    assert found.manifest.kind == "densified" and found.manifest.state == {} and found.manifest.consumed_tokens == 0
    assert found.manifest.source is not None and found.manifest.source["reactivated"] == 864
    assert found.config_yaml == Checkpoint(source).config_yaml
    weights = Checkpoint(out).weights()
    assert all(torch.equal(weights[name], tensor) for name, tensor in tensors["model"].items())


def test_densify_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = save(tmp_path / "a", 5)
    (other,) = save(tmp_path / "b", 5, tensors=make_tensors(masks_of(SPARSE), seed=1))
    out = tmp_path / "dense"
    assert main(["densify", str(source), str(out)]) == 0
    before = (out / "manifest.json").stat()  # reading it changes the time of access
    assert main(["densify", str(source), str(out)]) == 0
    assert "already done" in capsys.readouterr().out
    for taken in (out, source, tmp_path):
        assert main(["densify", str(other), str(taken)]) == 2
        assert "exists and is not the densification of" in capsys.readouterr().err
    after = (out / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    Checkpoint(source).verify()


def test_densify_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = save(tmp_path / "a", 5)
    path = source / "model-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["densify", str(source), str(tmp_path / "out")]) == 2
    assert "model-00000.safetensors is damaged" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("command", ["densify", "export-hf", "import-hf"])
@pytest.mark.parametrize("name", ["out.tmp", "out.tmp/model.safetensors", "out.old.tmp/x.tex", ".out.export.tmp/x.tex"])
def test_files_of_the_user_beside_the_output_stay(tmp_path: Path, command: str, name: str, sources) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    (tmp_path / ".out.0123456789abcdef.tmp").mkdir()  # the remains of a killed process
    assert main([command, *sources[command], str(tmp_path / "out")]) == 0
    assert (tmp_path / name).read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"a", "hf", "out", name.split("/")[0]})


def save_dense(folder: Path, tensors: Any) -> Path:
    """A dense checkpoint of these tensors."""
    from checkpoint_job import manifest_of, responsible

    from spdf_dist.checkpoint.write import single_writer

    return single_writer(folder, 1).write(
        responsible(0, 1, {}, tensors), masks=None, config_yaml="", tokenizer=None, manifest=manifest_of(None)
    )


def spoil(folder: Path, value: float) -> None:
    """Put one value that is not finite into an exported model."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("command", ["densify", "export-hf", "import-hf"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(  # type: ignore[no-untyped-def]
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, value: float, sources
) -> None:
    source = sources[command]
    if command == "import-hf":
        spoil(tmp_path / "hf", value)
    else:
        tensors = make_tensors({})
        tensors["model"]["layers.1.W_I"][5, 3] = value
        source = [str(save_dense(tmp_path / "b", tensors))]
    capsys.readouterr()
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main([command, *source, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert "1 of " in said and "values of layers.1.W_I are not finite" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    """By command: the source of the output folder."""
    (source,) = save(tmp_path / "a", 5)
    export_hf(source, tmp_path / "hf")
    return {"densify": [str(source)], "export-hf": [str(source)], "import-hf": [str(tmp_path / "hf")]}


COMMANDS = ("densify", "export-hf", "import-hf")


@pytest.mark.parametrize("command", COMMANDS)
def test_places_where_no_folder_can_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sources: dict[str, list[str]],
    command: str,
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out, message in ((f"{tmp_path}/file/x/out", "file is not a folder"), (".", ". is the current folder")):
        capsys.readouterr()
        assert main([command, *sources[command], out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "file", "hf"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path, sources: dict[str, list[str]], command: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert main([command, *sources[command], str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and any((tmp_path / "empty").glob("model*.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "hf", "link"]


def test_an_export_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = save(tmp_path / "a", 5)

    def full(self: SafetensorsStream) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SafetensorsStream, "complete", full)
    assert main(["export-hf", str(source), str(tmp_path / "out")]) == 1
    assert "out was not written: No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("command", ["inspect", "densify", "export-hf"])
def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    out = [] if command == "inspect" else [str(tmp_path / "out")]
    assert main([command, str(tmp_path / "nowhere"), *out]) == 2
    assert capsys.readouterr().err == f"spdf {command}: the checkpoint {tmp_path / 'nowhere'} does not exist\n"


def test_help_and_inspect_need_no_torch(tmp_path: Path) -> None:
    save(tmp_path, 5)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from spdf_dist.cli.main import build_parser, main\n"
        "from spdf_dist.cli import densify, export_hf, import_hf, inspect\n"
        "[build_parser('x', module).format_help() for module in (densify, export_hf, import_hf, inspect)]\n"
        f"sys.exit(main(['inspect', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "model state: needs torch" in done.stdout


@pytest.mark.parametrize("size", ["0", "nan", "inf", "-1"])
def test_sizes_that_no_shard_can_have(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-hf", "nothing", str(tmp_path / "out"), "--max-shard-gb", size]) == 2
    assert "--max-shard-gb: must be positive and finite" in capsys.readouterr().err
