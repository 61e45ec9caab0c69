"""Learning rates at the ends of steps. At the last token, the rate is 10% of the peak."""

from __future__ import annotations

import math

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import PretrainConfig, TrainingConfig
from spdf_dist.training.schedule import Cosine, Linear, WarmupStableDecay, schedule_of


def test_cosine():
    schedule = Cosine(2.0, 100, 1100, 0.1)
    at = {t: schedule.lr(t) for t in (50, 100, 600, 1100, 1200)}
    assert at[50] == 1.0 and at[100] == 2.0
    assert at[600] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert at[1100] == pytest.approx(0.2) and at[1200] == pytest.approx(0.2)
    assert Cosine(1.0, 100, 1100).lr(350) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_linear():
    rates = [Linear(1.0, 4, 12).lr(step) for step in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == 0.0 and rates[7] == 0.5


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.55), ("sqrt", 0.1 + 0.9 * (1 - math.sqrt(0.5)))])
def test_wsd_is_constant_until_its_cooldown(shape, half):
    schedule = WarmupStableDecay(1.0, 100, 1000, 0.1, cooldown=0.2, shape=shape)
    assert schedule.lr(50) == 0.5
    assert {schedule.lr(t) for t in (100, 500, 800)} == {1.0}
    assert schedule.lr(900) == pytest.approx(half) and schedule.lr(1000) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_the_config_chooses_the_schedule(name):
    schedule = schedule_of(TrainingConfig(schedule=name, lr=2.0, warmup_tokens=100), 1000)
    assert schedule.lr(100) == 2.0
    assert schedule.lr(1000) == pytest.approx(2.0 if name == "constant" else 0.2)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": "wsd", "cooldown_fraction": 0}, r"must be in \(0, 1\]"),
        ({"schedule": "wsd", "cooldown_fraction": 0.9, "warmup_tokens": 500_000}, "begins within the warm-up"),
        ({"cooldown_shape": "cubic"}, "cooldown_shape"),
        ({"cooldown_fraction": 0.5}, "cooldown_fraction: has no effect without training.schedule=wsd"),
        ({"reset": ["data"]}, "reset: has no effect without training.init_from"),
    ],
)
def test_mistakes_are_one_line(training, message):
    with pytest.raises(UserError, match=message):
        config_from_tree(PretrainConfig, {"training": training})
