"""The mixture's stream: asked fractions, whole epochs, order a function of seed and position."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.dataset import index_windows
from data_pipelines.loader import Loader
from data_pipelines.mixture import (
    Interleave,
    asked_fractions,
    describe_mixture,
    make_order,
    positions,
    realised_fractions,
)
from data_pipelines.windows import WindowIndex
from tests.fake_source import BATCH, LAYOUT, clips, robots, tokenize

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


def test_weights_change_at_their_steps():
    weights = [((0, 1.0), (10, 3.0)), 1.0, ((0, 0.0), (20, 4.0))]
    select, seen = Interleave(weights, batch=8), np.zeros((4, 3), int)
    for position in range(320):
        dataset, before = select[position]
        assert before == seen[:, dataset].sum()
        seen[position // 80, dataset] += 1
        assert select.counts(position + 1) == seen.sum(0).tolist()
    np.testing.assert_allclose(seen / 80, [[0.5, 0.5, 0], [0.75, 0.25, 0], [3 / 8, 1 / 8, 0.5], [3 / 8, 1 / 8, 0.5]],
                               atol=0.03)
    datasets, windows = mix(weights)
    assert realised_fractions(datasets, 320, batch=8) == dict(zip(("d0", "d1", "d2"), seen.sum(0) / 320))
    assert describe_mixture(datasets, windows)["d2"]["weight"] == [[0, 0.0], [20, 4.0]]
    order = make_order(datasets, windows, seed=0, batch=8)
    assert np.bincount([order[i].dataset for i in range(320)]).tolist() == seen.sum(0).tolist()


@pytest.mark.parametrize("weights, named", [
    ([((5, 1.0),), 1.0], "rising steps, the first 0"), ([((0, 1.0), (9, 2.0), (3, 1.0)), 1.0], "rising steps"),
    ([((0, 1.0), (9, 0.0)), ((0, 2.0), (9, 0.0))], "every weight is 0 from step 9 on"),
    ([((0, -1.0),), 1.0], r"'d0': weight = \(\(0, -1.0\),\)")])
def test_schedules_that_make_no_sense_are_named(weights, named):
    datasets, windows = mix(weights)
    with pytest.raises(ValueError, match=named):
        make_order(datasets, windows, seed=0)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_resuming_on_other_hosts_repeats_and_skips_no_window(hosts):
    """Steps 0 to 2 on one host, then on `hosts`: each window of an epoch exactly once."""
    dataset = robots(lengths=(96, 60))  # 64 + 28 windows, of which 88 are 11 batches of 8
    rows = []
    for start, stop, count in ((0, 3, 1), (3, 11, hosts)):
        for host in range(count):
            with Loader([dataset], LAYOUT, tokenize, fields=BATCH, seed=1, global_batch_size=8, start_step=start,
                        process_index=host, process_count=count) as loader:
                for _ in range(start, stop):
                    batch = next(loader)
                    rows += zip(batch["sample_index"].tolist(), batch["episode_index"].tolist(), batch["start"].tolist())
    rows.sort()
    assert [row[0] for row in rows] == list(range(88)) and len({row[1:] for row in rows}) == 88


def test_a_shuffle_of_half_a_billion_windows_costs_no_memory():
    import tracemalloc

    episodes, lengths = np.arange(1000), np.full(1000, 500_033)
    windows = WindowIndex.build(np.stack([episodes, 0 * episodes, lengths], 1), lengths, np.full(1000, 32), 1)
    assert len(windows) > 500_000_000
    [dataset] = mix([1.0])[0]
    tracemalloc.start()
    order = make_order([dataset], [windows], seed=0)
    drawn = [order[i].window for i in range(0, 10**9, 10**7)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 and len(set(drawn)) > 95 and max(drawn) > 4e8


def test_asked_shares_are_those_of_the_schedule():
    weights = {"a": [[0, 1.0], [10, 3.0]], "b": 1.0}
    assert asked_fractions(weights, 5) == {"a": 0.5, "b": 0.5}
    assert asked_fractions(weights, 20) == {"a": (0.5 * 10 + 0.75 * 10) / 20, "b": (0.5 * 10 + 0.25 * 10) / 20}
    assert asked_fractions(weights, 0) == {"a": 0.5, "b": 0.5}
