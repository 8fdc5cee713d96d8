"""Every normalisation by its published formula, and back."""

import numpy as np
import pytest

from data_pipelines.dataset import Dataset, check_absent
from data_pipelines.robots.embodiment import NORMALISATIONS, Dimension, Embodiment
from data_pipelines.robots.normalisation import make_scale
from data_pipelines.robots.slots import scatter
from data_pipelines.samples import SampleMaker
from data_pipelines.statistics.summary import Summary
from world_model.batch import batch_spec

E = 1e-6
FORMULAS = {  # of x, its mean m, standard deviation s, and the statistics by name
    "quantile": lambda x, v: np.clip(2 * (x - v["q01"]) / (v["q99"] - v["q01"]) - 1, -1, 1),
    "min_max": lambda x, v: np.clip(2 * (x - v["min"]) / (v["max"] - v["min"]) - 1, -1, 1),
    "bounds_99": lambda x, v: np.clip((x - v["q01"]) / (v["q99"] - v["q01"] + E) * 2 - 1, -1.5, 1.5),
    "bounds_99_unclipped": lambda x, v: (x - v["q01"]) / (v["q99"] - v["q01"] + E) * 2 - 1,
    "bounds_98": lambda x, v: np.clip((x - v["q02"]) / (v["q98"] - v["q02"] + E) * 2 - 1, -1.5, 1.5),
    "bounds_98_unclipped": lambda x, v: (x - v["q02"]) / (v["q98"] - v["q02"] + E) * 2 - 1,
    "range": lambda x, v: np.clip((x - v["min"]) / (v["max"] - v["min"] + E) * 2 - 1, -1, 1),
    "range_unclipped": lambda x, v: (x - v["min"]) / (v["max"] - v["min"] + E) * 2 - 1,
    "mean_std": lambda x, v: (x - v["mean"]) / (v["std"] + E),
    "std": lambda x, v: x / (v["std"] + E),
}


def robot(name: str, **changes) -> Embodiment:
    fields = {"name": "arm", "id": 900, "views": ("left", "right"), "view_layout": "side_by_side", "rate": 10.0,
              "state": tuple(Dimension(f"joint{i}", i) for i in range(3)), "normalisation": name}
    return Embodiment(**fields | changes)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_values_are_mapped_by_the_formula_and_back(name):
    rng, summary = np.random.default_rng(0), Summary()
    values = rng.normal([1, -2, 300], [0.01, 1, 50], (400, 3)).astype(np.float32)
    summary.update(values)
    statistics = {"dataset": "some", "state": summary.result(NORMALISATIONS[name].quantiles)}
    scale = make_scale(statistics, robot(name), "state")
    found = scale.normalise(values)
    np.testing.assert_allclose(found, FORMULAS[name](values.astype(np.float64), {
        key: np.array(value) for key, value in statistics["state"].items()}), rtol=1e-6, atol=1e-6)
    inside = np.abs(found) < (NORMALISATIONS[name].clip or np.inf)
    np.testing.assert_allclose(scale.denormalise(found)[inside], values[inside], atol=1e-4)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_dimension_that_never_moves_is_refused(name):
    summary = Summary()
    summary.update(np.tile([[0.0, 1, 2]], (9, 1)) + np.array([1, 1, 0]) * np.arange(9)[:, None])
    statistics = {"dataset": "some", "state": summary.result(NORMALISATIONS[name].quantiles)}
    with pytest.raises(ValueError, match="dimension 'joint2' has no range"):
        make_scale(statistics, robot(name), "state")


def test_angles_are_cosines_with_their_sines_behind_and_back():
    """`sincos` of the published code: [cos, sin] of a group, whatever its statistics; others are scaled as declared."""
    joints = tuple(Dimension(f"joint{i}", i, sine_slot=2 + i) for i in range(2))
    arm = robot("mean_std", state=(joints[0], Dimension("gripper", 5), joints[1]))
    values = np.array([[0.5, 3.0, -3.0], [np.pi, 5.0, 0.0]])
    statistics = {"dataset": "some", "state": {"mean": [0.0, 4, 1], "std": [0, 2, 0]}}
    scale = make_scale(statistics, arm, "state")
    placed = scatter(scale.normalise(values), arm.state_slots, 6)
    expected = np.concatenate([np.cos(values[:, ::2]), np.sin(values[:, ::2])], -1)
    np.testing.assert_allclose(placed[:, :4], expected, atol=1e-7)
    np.testing.assert_allclose(placed[:, 4:], [[0, -0.5], [0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(scale.denormalise(placed[:, arm.state_slots]), values, atol=1e-6)
    np.testing.assert_array_equal(scale.normalise(values[0]), scale.normalise(values)[0])


def test_angles_that_cannot_be():
    turned = Dimension("joint", 0, sine_slot=1)
    with pytest.raises(ValueError, match=r"state slot used twice: \[1\]"):
        robot("mean_std", state=(turned, Dimension("gripper", 1)))
    with pytest.raises(ValueError, match="action 'joint' has a sine_slot: of states alone"):
        robot("mean_std", action=(turned,))


class Recordings:
    """One episode of five steps that has the right camera alone."""

    def stretches(self):
        return np.array([[0, 0, 5]])

    def lengths(self):
        return np.array([5])

    def rates(self):
        return np.array([10.0])


def test_views_that_a_dataset_lacks_are_masked(layout_of_one_frame):
    fields = batch_spec(layout_of_one_frame, action_dim=2, state_dim=0, text_length=1, views=3)
    arm = robot("quantile", state=())
    dataset = Dataset("some", Recordings(), arm, absent_views=("left",))
    maker = SampleMaker(dataset, 0, layout_of_one_frame, lambda prompt: (np.zeros(1, np.int32), 0), fields=fields)

    class Episode:
        dataset, index, length, rate, instruction = "some", 0, 5, 10.0, ""
        state = action = None

        def instruction_at(self, step):
            return ""

        def read_frames(self, steps):
            return {"right": np.full((len(steps), 8, 8, 3), 7, np.uint8)}

    maker.dataset.source.__class__.__getitem__ = lambda self, index: Episode()
    row = maker(2, 0)
    assert row["view_mask"].tolist() == [False, True, False]
    assert [int(view.max()) for view in row["views"]] == [0, 7, 0]


@pytest.mark.parametrize("absent, fields, message", [
    (("lift",), {}, "has no view 'lift'; it has"), (("left", "right"), {}, "no view is left to look at"),
    (("left",), {"video": ()}, "a tiled canvas has a cell for each view")])
def test_views_that_cannot_be_absent(absent, fields, message):
    with pytest.raises(ValueError, match=message):
        check_absent(Dataset("some", Recordings(), robot("quantile"), absent_views=absent), fields)


@pytest.fixture
def layout_of_one_frame():
    from world_model.batch import Layout
    return Layout(1, 8, 8, 1, 4, 0, 1)
