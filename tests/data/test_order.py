import numpy as np
import pytest

from spdf_dist.data.order import permute, round_keys, sequence_at, share_samples, whole_weights


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4099])
def test_each_epoch_is_a_permutation_of_its_own(size: int) -> None:
    orders = [sequence_at(np.arange(epoch * size, (epoch + 1) * size), size, 3, 0) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(size))
    if size >= 64:
        assert not np.array_equal(orders[0], orders[1])
        assert np.mean(orders[0] == np.arange(size)) < 0.1


def test_the_order_looks_random() -> None:
    size = 20000
    order = sequence_at(np.arange(size), size, 1, 0)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.03
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
    steps = np.diff(order)
    assert len(np.unique(steps)) > size // 3
    halves = order[: size // 2] < size // 2
    assert abs(halves.mean() - 0.5) < 0.02


def test_seeds_and_data_sets_have_orders_of_their_own() -> None:
    orders = [sequence_at(np.arange(500), 500, seed, dataset) for seed in (0, 1) for dataset in (0, 1)]
    for at, order in enumerate(orders):
        for other in orders[:at]:
            assert np.mean(order == other) < 0.05


def test_the_order_is_pinned() -> None:
    """If the generator changed, a continued run would repeat and skip sequences."""
    assert sequence_at(np.arange(8), 8, 42, 0).tolist() == [7, 2, 0, 3, 1, 6, 5, 4]


def test_a_huge_data_set_costs_the_same() -> None:
    size = 3 * 10**9 + 1
    positions = np.array([0, 1, size - 1], np.uint64)
    values = permute(positions, size, round_keys(0, 0, 0))
    assert len(set(values.tolist())) == 3
    assert all(value < size for value in values.tolist())


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [0.7, 0.3], [3, 2, 5], [0.1, 0.2, 0.3, 0.4], [1e-3, 1.0, 2.5]])
def test_weights_are_exact_and_draws_have_no_gap(weights: list[float]) -> None:
    whole = whole_weights(weights)
    period = sum(whole)
    samples = np.arange(2 * period)
    datasets, draws = share_samples(samples, whole)
    for number, weight in enumerate(whole):
        own = datasets == number
        assert own.sum() == 2 * weight
        assert np.array_equal(draws[own], np.arange(2 * weight))
        assert np.abs(np.cumsum(own) - (samples + 1) * weight / period).max() <= np.ceil(np.log2(len(weights))) + 1
    assert np.allclose(np.array(whole) / period, np.array(weights) / sum(weights), rtol=1e-12)


def test_uneven_decimals_are_taken_to_six_digits() -> None:
    whole = np.array(whole_weights([1 / 3, 2 / 3, 0.1234567891]))
    assert np.allclose(whole / whole.sum(), np.array([1 / 3, 2 / 3, 0.1234567891]) / 1.1234567891, atol=1e-6)


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1.0], [float("nan")], [float("inf"), 1.0], [1e-9, 1.0]])
def test_weights_that_are_no_shares(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        whole_weights(weights)


def test_far_samples_do_not_overflow() -> None:
    whole = whole_weights([0.123456, 0.876544])
    far = (1 << 40) - 1
    datasets, draws = share_samples(np.array([far - 1, far]), whole)
    expected = [(far + at) * whole[0] // sum(whole) for at in (-1, 0, 1)]
    for at in (0, 1):
        left = expected[at + 1] > expected[at]
        assert datasets[at] == (0 if left else 1)
        assert draws[at] == (expected[at] if left else far - 1 + at - expected[at])
