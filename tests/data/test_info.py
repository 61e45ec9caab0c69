import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spdf_dist.cli.main import main
from spdf_dist.data import info
from spdf_dist.data.loader import PackedDataset
from spdf_dist.data.pack import pack


def test_unigram_entropy_is_that_of_the_predicted_tokens(
    tmp_path: Path,
    sp_model: str,
    three_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(info, "CHUNK", 7)
    folder = tmp_path / "out"
    pack(three_files, sp_model, str(folder), 16, workers=1)
    dataset = PackedDataset(folder)
    targets = Counter(dataset.read(np.arange(dataset.num_sequences))[:, 1:].ravel().tolist())
    total = sum(targets.values())
    entropy = -sum(n / total * math.log(n / total) for n in targets.values())

    assert main(["data", "info", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["unigram_entropy"] == pytest.approx(entropy)
    assert (summary["sequences"], summary["used_ids"]) == (dataset.num_sequences, len(targets))
    assert main(["data", "info", str(folder)]) == 0
    assert f"entropy {entropy:.3f} nats" in capsys.readouterr().out


def test_no_packed_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "info", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
