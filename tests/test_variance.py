"""The variance study's arithmetic, on success whose components are known."""

import json

import numpy as np
import pytest

from benchmarks import variance


def simulated(initialisation, order, checkpoint, shape=(40, 40, 2, 400), seed=0):
    """Solved episodes whose success has these deviations, around a half."""
    rng = np.random.default_rng(seed)
    rows, columns, starts = shape[0], shape[1], shape[3]
    success = (0.5 + rng.normal(0, initialisation, (rows, 1, 1)) + rng.normal(0, order, (1, columns, 1))
               + rng.normal(0, checkpoint, shape[:3]))
    return (rng.random((*shape[:3], starts)) < success[..., None]).astype(float)


@pytest.mark.parametrize(("initialisation", "order"), [(0.1, 0.02), (0.02, 0.1)])
def test_components_are_told_apart(initialisation, order):
    found = variance.components(simulated(initialisation, order, 0.05))
    assert found["initialisation"] ** 0.5 == pytest.approx(initialisation, rel=0.3)
    assert found["order"] ** 0.5 == pytest.approx(order, rel=0.3)
    assert found["checkpoint"] == pytest.approx(0.05**2 + 0.24 / 400, rel=0.15)  # that of 400 starts is in it
    assert found["starts"] == pytest.approx(0.24, rel=0.1)


def test_no_component_is_below_nothing():
    found = variance.components(simulated(0.0, 0.0, 0.0, (3, 3, 2, 40)))
    assert min(found.values()) >= 0 and found["initialisation"] < 0.02


def test_a_sweep_is_read_whole_or_refused(tmp_path):
    def write(variant, seed, name, solved):
        path = tmp_path / f"init_{variant}/seed_{seed}/closed_loop_{name}/closed_loop.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"policies": {"model": {"each": [{"solved": bool(each)} for each in solved]}}}))

    for variant, seed in np.ndindex(2, 3):
        write(variant, seed, "last", [variant, seed == 1, 0, 1])
        if (variant, seed) != (1, 2):
            write(variant, seed, "before", [0, 0, 1, 1])
    with pytest.raises(ValueError, match="not measured alike; finish the sweep"):
        variance.read(tmp_path)
    write(1, 2, "before", [0, 0, 1, 1])
    found = variance.read(tmp_path)
    assert found.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(found[1, 1], [[0, 0, 1, 1], [1, 1, 0, 1]])  # before, last
    with pytest.raises(ValueError, match="expected two of each at least"):
        variance.read(tmp_path / "nothing")
