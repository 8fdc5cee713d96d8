"""Streaming statistics against numpy: exact moments, exact quantiles while small, ranks within the stated bound beyond."""

import json

import numpy as np
import pytest

from data_pipelines.statistics.summary import Summary


def feed(values: np.ndarray, kept: int, pieces: int = 7) -> Summary:
    summary = Summary(kept)
    for part in np.array_split(values, pieces):
        summary.update(part)
    return summary


def streams() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(40_000, 3)).cumsum(0)
    return {"normal": rng.normal(size=(40_000, 3)), "sorted": np.sort(walk, axis=0), "walk": walk,
            "few values": rng.integers(0, 3, (40_000, 2)), "far off": 1e4 + rng.normal(size=(40_000, 2)),
            "outliers": rng.standard_cauchy((40_000, 2)) ** 3}


@pytest.mark.parametrize("name", streams())
def test_moments_are_exact_and_ranks_within_the_bound(name):
    values = streams()[name].astype(np.float32)
    summary = feed(values, kept=512)
    found, exact = summary.result(), values.astype(np.float64)
    assert found["count"] == 40_000 and 0 < found["rank_error"] <= 7 / 1024
    np.testing.assert_allclose(found["mean"], exact.mean(0), rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(found["std"], exact.std(0), rtol=1e-5)
    np.testing.assert_array_equal(found["min"], exact.min(0))
    np.testing.assert_array_equal(found["max"], exact.max(0))
    for share, quantile in ((0.01, "q01"), (0.99, "q99")):
        for d, value in enumerate(found[quantile]):
            slack = found["rank_error"] + 1 / 40_000
            below, upto = (exact[:, d] < value).mean(), (exact[:, d] <= value).mean()
            assert below - slack <= share <= upto + slack, (d, below, upto)


def test_quantiles_of_few_values_are_those_of_numpy():
    values = np.random.default_rng(1).normal(size=(1023, 4)).astype(np.float32)
    summary = feed(values, kept=512)
    assert summary.rank_error == 0
    np.testing.assert_allclose(summary.quantiles((0.01, 0.5, 0.99)), np.quantile(values, (0.01, 0.5, 0.99), axis=0))


def test_merging_is_the_same_stream():
    values = np.random.default_rng(2).normal(size=(30_000, 2)).astype(np.float32)
    whole, merged = feed(values, kept=256), Summary(256)
    for part in np.array_split(values, 5):
        merged.merge(feed(part, kept=256))
    a, b = whole.result(), merged.result()
    for name in ("count", "min", "max"):
        assert a[name] == b[name]
    for name in ("mean", "std"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-9)
    assert b["rank_error"] <= 8 / 512
    for share, name in ((0.01, "q01"), (0.99, "q99")):
        ranks = [(values[:, d] < b[name][d]).mean() for d in range(2)]
        np.testing.assert_allclose(ranks, share, atol=b["rank_error"])
    assert json.loads(json.dumps(b)) == b


def test_weights_add_up():
    summary = feed(np.arange(100_000, dtype=np.float32)[:, None], kept=128)
    weights = summary._waiting + sum(2 ** (i + 1) * p.shape[1] for i, kept in enumerate(summary._levels) for p in kept)
    assert weights == summary.count == 100_000
    stored = summary._waiting + sum(p.shape[1] for kept in summary._levels for p in kept)
    assert stored < 128 * 14


@pytest.mark.parametrize("count", [0, 300, 10_000])
def test_going_on_from_what_was_kept_gives_the_same(count):
    values = np.random.default_rng(0).normal(size=(count + 5000, 3)).astype(np.float32)
    summary = feed(values[:count], kept=128)
    restored = Summary.restored({name: value.copy() for name, value in summary.arrays().items()}, kept=128)
    for each in (summary, restored):
        each.update(values[count:])
    assert summary.result() == restored.result()
