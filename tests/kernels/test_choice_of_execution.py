"""`auto` selects compressed only where the measurement shows that it is not slower than dense."""

import random
from collections.abc import Iterator

import pytest
import torch
from kernels_reference import random_pattern
from spdf_kernels import choose, compare
from spdf_kernels.choose import PAIRS, judge, measured_tokens, paired_ratios
from spdf_kernels.pairs import clock_name, median_and_bound, timed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class FakeTime:
    """A clock that advances only by the work that is done."""

    def __init__(self, dense: list[float], sparse: list[float]) -> None:
        self.seconds = 0.0
        self.left = {"dense": [*dense], "sparse": [*sparse]}
        self.order: list[str] = []

    def now(self) -> float:
        return self.seconds

    def dense(self) -> None:
        self.order.append("dense")
        self.seconds += self.left["dense"].pop(0)

    def sparse(self) -> None:
        self.order.append("sparse")
        self.seconds += self.left["sparse"].pop(0)


def judged(dense: list[float], sparse: list[float]) -> tuple[str, float, float, int]:
    """The choice after one warm-up of each candidate and the given times."""
    time = FakeTime([100.0, *dense], [100.0, *sparse])
    comparison = judge(paired_ratios(time.dense, time.sparse, timed(time.now)), tokens=64, threads=1)
    assert time.left == {"dense": [], "sparse": []}
    return comparison.execution, comparison.speedup, comparison.speedup_lower, comparison.pairs


def test_fifteen_pairs_at_least_after_a_warm_up_each() -> None:
    assert PAIRS >= 15
    time = FakeTime([1.0] * (PAIRS + 1), [1.0] * (PAIRS + 1))
    assert len(paired_ratios(time.dense, time.sparse, timed(time.now))) == PAIRS
    assert sorted(time.order[:2]) == ["dense", "sparse"]
    firsts = time.order[2::2]
    assert abs(firsts.count("dense") - firsts.count("sparse")) <= 1  # neither candidate is always measured second


def test_clearly_faster_is_compressed() -> None:
    assert judged([2.0] * PAIRS, [1.0] * PAIRS) == ("compressed", 2.0, 2.0, PAIRS)


def test_as_fast_as_dense_is_compressed_for_it_saves_memory() -> None:
    assert judged([1.0] * PAIRS, [1.0] * PAIRS)[0] == "compressed"


def test_slower_is_masked() -> None:
    assert judged([0.75] * PAIRS, [1.0] * PAIRS) == ("masked", 0.75, 0.75, PAIRS)


def test_few_disturbed_pairs_do_not_hide_a_gain() -> None:
    assert judged([1.25] * 12 + [0.5] * 3, [1.0] * PAIRS)[0] == "compressed"


def test_a_median_that_noise_leaves_open_is_masked() -> None:
    execution, median, bound, _ = judged([1.5] * 10 + [0.75] * 5, [1.0] * PAIRS)
    assert execution == "masked" and median == 1.5 and bound == 0.75


def test_noise_around_dense_is_rarely_taken_for_a_gain() -> None:
    source = random.Random(0)
    runs = [judge([source.lognormvariate(-0.05, 0.2) for _ in range(PAIRS)], 64, 2) for _ in range(400)]
    assert sum(run.execution == "compressed" for run in runs) < 0.05 * len(runs)


def test_the_bound_is_the_order_statistic_of_the_sign_test() -> None:
    # P(at most 3 of 15 below the median) = 0.018, at most 4: 0.059; of 5 none: 0.031; of 4 none: 0.0625.
    assert median_and_bound([float(i) for i in range(15)]) == (7.0, 3.0)
    assert median_and_bound([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 1.0)
    assert median_and_bound([4.0, 2.0]) == (3.0, 2.0)


def test_one_thread_is_timed_by_processor_time() -> None:
    assert (clock_name(1), clock_name(2)) == ("processor", "wall")


def test_tokens_of_a_measurement_are_bounded() -> None:
    assert measured_tokens((64, 64)) == 2048
    assert measured_tokens((768, 3072)) == 706
    assert measured_tokens((8192, 8192)) == 512


def test_a_measured_choice_says_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "portable")
    comparison = compare(random_pattern(64, 128, 0.5, seed=0), 40)
    assert comparison.execution in ("masked", "compressed")
    assert (comparison.pairs, comparison.tokens, comparison.threads) == (PAIRS, 40, 1)
    assert comparison.speedup_lower <= comparison.speedup
    assert f"{comparison.speedup:.2f}x dense (>= {comparison.speedup_lower:.2f})" == comparison.reason


def test_the_same_kind_of_layer_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "portable")
    first = compare(random_pattern(96, 64, 0.5, seed=0), 32)
    assert compare(random_pattern(96, 64, 0.5, seed=0), 32) is first


def test_nothing_kept_is_compressed() -> None:
    assert choose(random_pattern(64, 64, 0.0, seed=0), 32) == "compressed"


def test_choice_without_a_native_backend_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "torch")
    comparison = compare(random_pattern(64, 64, 0.01, seed=0), 32)
    assert comparison.execution == choose(random_pattern(64, 64, 0.01, seed=0), 32) == "masked"
    assert comparison.pairs == 0 and comparison.speedup is None
