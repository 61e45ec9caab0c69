"""The user's DeepSpeed settings: conflicts with the config and unknown settings are errors of one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.zero import deepspeed_settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": {"type": "Adam"}}, "deepspeed.optimizer: set training.lr"),
        ({"train_batch_size": 999}, "deepspeed.train_batch_size: set training.global_batch_size"),
        ({"fp16": {"enabled": True}}, "deepspeed.fp16: set training.precision"),
        ({"bf16": {"enabled": True}}, "deepspeed.bf16.enabled: True conflicts"),
        ({"torch_autocast": {"enabled": True}}, "deepspeed.torch_autocast: set training.precision"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype: 'bf16' conflicts"),
        ({"gradient_clipping": 0.5}, "deepspeed.gradient_clipping: 0.5 conflicts"),
        ("settings.json", "expected keys and values"),
    ],
)
def test_what_the_config_says_already(settings: Any, words: str, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.json").write_text("[1, 2]")
    config = dataclasses.replace(PretrainConfig(), deepspeed=settings)
    with pytest.raises(UserError, match=words):
        deepspeed_settings(config, 1)


def test_other_settings_are_merged() -> None:
    settings = {"zero_optimization": {"reduce_bucket_size": 1000}}
    config = dataclasses.replace(PretrainConfig(), deepspeed=settings)
    merged = deepspeed_settings(config, 1)
    assert merged["zero_optimization"] == {"stage": config.parallel.zero_stage, "reduce_bucket_size": 1000}


def test_at_stage_0_clipping_is_ours_and_may_be_said_twice() -> None:
    config = PretrainConfig()
    config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, zero_stage=0))
    said = {"gradient_clipping": config.training.clip_grad}
    assert deepspeed_settings(dataclasses.replace(config, deepspeed=said), 1)["gradient_clipping"] == 0.0
    with pytest.raises(UserError, match="conflicts"):
        deepspeed_settings(dataclasses.replace(config, deepspeed={"gradient_clipping": 0.0}), 1)
