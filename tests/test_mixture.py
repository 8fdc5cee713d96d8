"""The mixture's stream: asked fractions, whole epochs, order a function of seed and position."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.mixture import Interleave, describe_mixture, make_order, positions, realised_fractions
from data_pipelines.samples import index_windows
from tests.fake_source import LAYOUT, clips, robots

WEIGHTS = [[1.0], [3.0, 1.0], [0.7, 0.2, 0.1], [1.0, 1e-3], [1 / 3, 0.5, 0.02, 0.11]]


def mix(weights, length=40):
    datasets = [dataclasses.replace(clips(lengths=(length + i, 60)), name=f"d{i}", weight=w)
                for i, w in enumerate(weights)]
    return datasets, [index_windows(d, LAYOUT) for d in datasets]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_fractions_over_10000_draws(weights):
    datasets, windows = mix(weights, length=5000)  # Grain's shuffle is slow on few elements
    order = make_order(datasets, windows, seed=0)
    drawn = np.bincount([order[i].dataset for i in range(10_000)], minlength=len(weights)) / 10_000
    np.testing.assert_allclose(drawn, np.array(weights) / sum(weights), atol=0.001, rtol=0.01)
    assert realised_fractions(datasets, 10_000) == {f"d{i}": x for i, x in enumerate(drawn)}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_positions_are_index_arithmetic(weights):
    select, seen = Interleave(weights), [0] * len(weights)
    for position in range(300):
        assert select.counts(position) == seen
        dataset, before = select[position]
        assert before == seen[dataset]
        seen[dataset] += 1
        share = np.array(weights) / sum(weights) * (position + 1)
        assert np.abs(seen - share).max() <= len(weights)
    far = select.counts(10**15)
    assert sum(far) == 10**15
    np.testing.assert_allclose(np.array(far) / 10**15, np.array(weights) / sum(weights), atol=1e-6)


def test_each_epoch_draws_every_window_once_in_another_order():
    datasets, windows = mix([1.0, 1.0])
    order = make_order(datasets, windows, seed=0)
    for which in range(2):
        n = len(windows[which])
        stream = [d.window for d in (order[i] for i in range(4 * n)) if d.dataset == which]
        first, second = stream[:n], stream[n:2 * n]
        assert sorted(first) == sorted(second) == list(range(n))
        assert first != second and first != sorted(first)


def test_order_depends_on_seed_and_position_alone():
    datasets, windows = mix([3.0, 1.0])
    order, again = (make_order(datasets, windows, seed=5) for _ in range(2))
    forwards = [order[i] for i in range(50)]
    assert [again[i] for i in reversed(range(50))] == forwards[::-1]
    assert [d.position for d in forwards] == list(range(50))
    other = make_order(datasets, windows, seed=6)
    assert [other[i].window for i in range(50)] != [d.window for d in forwards]


def test_neighbouring_seeds_share_no_epoch():
    datasets, windows = mix([1.0])
    n = len(windows[0])
    later = [make_order(datasets, windows, seed=0)[i].window for i in range(n, 2 * n)]
    assert later != [make_order(datasets, windows, seed=1)[i].window for i in range(n)]


def test_description_tells_mixtures_apart():
    datasets, windows = mix([1.0, 2.0])
    assert positions(datasets, 9) == {"d0": 3, "d1": 6}
    description = describe_mixture(datasets, windows)
    assert description["d1"]["weight"] == 2.0 and description["d0"]["windows"] == len(windows[0])
    swapped = describe_mixture(datasets[::-1], windows[::-1])
    assert swapped != description
    robot = robots()
    assert describe_mixture([robot], [index_windows(robot, LAYOUT)])["fake"]["embodiment"] == "fake"
