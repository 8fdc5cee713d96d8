"""Statistics of their own for each step of a block: counted, trained with, executed, published; what does not fit."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.robots import embodiments
from data_pipelines.robots.embodiment import NORMALISATIONS, Dimension
from data_pipelines.robots.normalisation import make_scale
from data_pipelines.robots.robot import Robot
from data_pipelines.samples import SampleMaker
from data_pipelines.statistics.compute import compute_statistics
from data_pipelines.statistics.published import against_published
from data_pipelines.statistics.stored import load_statistics, save_statistics
from data_pipelines.statistics.summary import Summary
from launch import check_embodiment, inspect_data
from launch import statistics as command
from launch.reporting import baselines
from launch.simulation import closed_loop
from tests.fake_source import BATCH, LAYOUT, ROBOT, robots, tokenize
from tests.test_normalisation import FORMULAS
from world_model.families.dreamzero.weights import experiment
from world_model.families.lingbot_vla.weights import norm_stats
from world_model.weights.tensor_files import WeightsError

STEPWISE = dataclasses.replace(ROBOT, per_step=True, normalisation="bounds_99_unclipped")
DRIVEN = dataclasses.replace(LAYOUT, states_per_block=1)


def by_step(dataset: Dataset) -> list[np.ndarray]:
    """All actions of distinct blocks, relative where declared, for each step of a block, by plain loops."""
    found = [[] for _ in range(16)]
    for index in range(len(dataset.source)):
        episode = dataset.source[index]
        for block in sorted({s + b for s in range(max(0, episode.length - 33) + 1) for b in (0, 16)}):
            for step in range(block, min(block + 16, episode.length - 1)):
                found[step - block].append(episode.action[step] - [episode.state[block, 0], 0])
    return [np.array(each) for each in found]


@pytest.fixture(scope="module")
def dataset():
    return robots(lengths=(40, 60, 20), embodiment=STEPWISE)


def test_statistics_equal_numpy_at_each_step(dataset):
    values, found = by_step(dataset), dataset.statistics["action"]
    assert found["count"] == sum(map(len, values)) and len(values[0]) > len(values[15])
    formulas = {"mean": lambda x: x.mean(0), "std": lambda x: x.std(0), "min": lambda x: x.min(0),
                "max": lambda x: x.max(0), "q01": lambda x: np.quantile(x, 0.01, axis=0),
                "q99": lambda x: np.quantile(x, 0.99, axis=0)}
    for name, formula in formulas.items():
        np.testing.assert_allclose(found[name], [formula(x) for x in values], rtol=1e-5, atol=1e-6, err_msg=name)
    plain = robots(lengths=(40, 60, 20)).statistics
    assert dataset.statistics["state"] == plain["state"] and plain["action"]["count"] == found["count"]
    assert dataset.statistics["absolute_action"] == plain["absolute_action"]


def test_files_keep_them_and_a_count_that_was_stopped_goes_on(dataset, tmp_path):
    save_statistics({"fake": dataset.statistics}, str(tmp_path / "statistics.json"))
    assert load_statistics(str(tmp_path / "statistics.json"))["fake"] == dataset.statistics
    for _ in range(2):
        assert compute_statistics(dataset, LAYOUT, str(tmp_path / "parts")) == dataset.statistics
    assert against_published(dataset, dataset.statistics) == []


def test_a_training_row_is_the_formula_at_each_step(dataset):
    maker = SampleMaker(dataset, 0, LAYOUT, tokenize, fields=BATCH)
    window = next(i for i in range(len(maker.windows)) if maker.windows[i] == (1, 5))
    row, values = maker(window, 0), by_step(dataset)
    for t in range(32):
        anchor, step = (5, 21)[t // 16], 5 + t
        x = np.array([step + step % 5 - anchor, step % 3])
        q01, q99 = (np.quantile(values[t % 16].astype(np.float64), q, axis=0) for q in (0.01, 0.99))
        np.testing.assert_allclose(row["actions"][t, [0, 7]], (x - q01) / (q99 - q01 + 1e-6) * 2 - 1, rtol=1e-4, atol=1e-5)


def test_commands_and_back(dataset):
    robot, state = Robot(STEPWISE, dataset.statistics, DRIVEN, state_dim=64), np.array([7.0, -1.0])
    q01, q99 = (np.array(dataset.statistics["action"][name]) for name in ("q01", "q99"))
    predicted = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    commands = robot.commands(predicted, state)
    expected = q01 + (predicted[:, [0, 7]] + 1) / 2 * (q99 - q01 + 1e-6) + [7, 0]
    np.testing.assert_allclose(commands, expected, rtol=1e-5, atol=1e-5)
    back = robot.predicted(commands, state, 32)
    np.testing.assert_allclose(back[:, [0, 7]], predicted[:, [0, 7]], atol=1e-4)
    np.testing.assert_array_equal(robot.predicted(commands[:5], state, 32), back[:5])  # on their way: a block's first
    np.testing.assert_array_equal(robot.predicted(np.tile(commands, (2, 1)), state, 32), np.tile(back, (2, 1)))


def test_a_robots_horizon_ends_the_steps():
    robot = dataclasses.replace(STEPWISE, horizon=10)
    dataset = robots(lengths=(40, 60), embodiment=robot)
    assert np.shape(dataset.statistics["action"]["mean"]) == (10, 2)
    scale = make_scale(dataset.statistics, robot, "action")
    assert scale.low.shape == (16, 2) and (scale.low[10:] == scale.low[9]).all()
    assert Robot(robot, dataset.statistics, DRIVEN, 64).commands(np.zeros((16, 32)), np.zeros(2)).shape == (10, 2)
    with pytest.raises(ValueError, match=r"no episode has more than 7 actions, and statistics of 10 steps are asked for: "
                                         r"embodiment 'fake' should declare horizon=7"):
        robots(lengths=(8, 6, 8), embodiment=robot)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_every_formula_at_each_step_and_a_step_without_movement(name):
    """The first dimension stands still at the first step, as a difference from the state at a block's start may."""
    values = np.random.default_rng(0).normal([1, -2], [0.5, 3], (400, 3, 2)).astype(np.float32)
    values[:, 0, 0] = 0.25
    each = []
    for step in range(3):
        summary = Summary()
        summary.update(values[:, step])
        each.append(summary.result(NORMALISATIONS[name].quantiles))
    action = {key: [found[key] for found in each] for key in each[0]}
    robot, statistics = dataclasses.replace(STEPWISE, normalisation=name), {"actions_per_block": 3, "action": action}
    scale = make_scale(statistics, robot, "action")
    found = scale.normalise(values)
    with np.errstate(all="ignore"):
        expected = FORMULAS[name](values.astype(np.float64), {key: np.array(value) for key, value in action.items()})
    expected[:, 0, 0] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    inside = np.abs(found) < (NORMALISATIONS[name].clip or np.inf)
    np.testing.assert_allclose(scale.denormalise(found)[inside], values[inside], atol=1e-4)
    still = copy.deepcopy(statistics)
    for key in ("mean", "q01", "q99", "q02", "q98", "min", "max"):
        if key in action:
            still["action"][key] = [[0.25, row[1]] for row in action[key]]
    still["action"]["std"] = [[0.0, row[1]] for row in action["std"]]
    with pytest.raises(ValueError, match="dimension 'dx' has no range: .*constant=True"):
        make_scale(still, robot, "action")


def changed(statistics: dict, change) -> dict:
    found = copy.deepcopy(statistics)
    found["action"] |= {key: change(copy.deepcopy(found["action"][key])) for key in ("q01", "q99")}
    return found


@pytest.mark.parametrize("change, per_step, message", [
    (lambda rows: rows[:7], True, "'q01': expected 16 steps of a block, found 7"),
    (lambda rows: rows[0], True, r"'q01': expected for each of 16 steps, as the robot is declared per_step=True, 2 dimensions, "
                                 r"found shape \(2,\)"),
    (lambda rows: rows, False, r"'q01': expected 2 dimensions, found shape \(16, 2\)"),
    (lambda rows: [*rows[:3], [0.0], *rows[4:]], True, "'q01': its steps have different numbers of dimensions"),
    (lambda rows: [*rows[:3], [0.0, np.nan], *rows[4:]], True, "'q01' of dimension 'grip' at step 3 is nan")])
def test_statistics_that_do_not_fit_are_named(dataset, change, per_step, message):
    robot = dataclasses.replace(STEPWISE, per_step=per_step)
    with pytest.raises(ValueError, match=rf"^statistics of dataset 'fake': action {message}"):
        make_scale(changed(dataset.statistics, change), robot, "action")


def test_a_longer_chunk_is_cut_and_a_lone_vector_has_no_step(dataset):
    scale = make_scale(dataset.statistics, STEPWISE, "action")
    longer = make_scale(changed(dataset.statistics, lambda rows: rows + [[0.0, 9.0]] * 4), STEPWISE, "action")
    np.testing.assert_array_equal(longer.low, scale.low)
    with pytest.raises(ValueError, match=r"differ from step to step of a block: expected values \[\.\.\., steps, 2\] from a "
                                         r"block's first step on, found shape \(2,\)"):
        scale.normalise(np.zeros(2))


def test_latent_caches_name_them_where_they_are_asked_for():
    assert repr(STEPWISE) == repr(dataclasses.replace(STEPWISE, per_step=False))[:-1] + ", per_step=True)"


def test_baselines_know_the_steps(dataset):
    values = dataset.statistics["action"]["mean"]
    scale = make_scale(dataset.statistics, STEPWISE, "action")
    states = np.array([[3.0, 0.0], [19.0, 0.0]])
    commands = np.array([5.0, 1.0]) + np.arange(16)[:, None] * [1.0, 0.0]  # the last one is 20, 1
    batch = {"actions": np.zeros((1, 32, 32), np.float32), "action_mask": np.ones((1, 32, 32), bool),
             "state": np.zeros((1, 2, 64), np.float32), "dataset_id": np.zeros(1, np.int32)}
    batch["actions"][0, :16, [0, 7]] = scale.normalise(commands - [3, 0]).T
    batch["state"][0][:, [0, 9]] = make_scale(dataset.statistics, STEPWISE, "state").normalise(states)
    repeated, known = baselines.repeated_actions(batch, (dataset,), DRIVEN)
    np.testing.assert_allclose(scale.denormalise(repeated[0, 16:][:, [0, 7]]), np.tile([[1.0, 1.0]], (16, 1)), atol=1e-3)
    assert known[0, 16:].all() and not known[0, :16].any()
    mean = baselines.mean_actions(batch, (dataset,), DRIVEN)[0]
    np.testing.assert_allclose(scale.denormalise(mean[:16, [0, 7]]), values, atol=1e-4)
    np.testing.assert_array_equal(mean[16:], mean[:16])
    assert closed_loop.Mean(dataset.statistics)([None])[0].shape == (16, 2)
    drawn = closed_loop.Random(dataset.statistics, 4)([closed_loop.Run(seed, None) for seed in range(99)])
    low, high = (np.array(dataset.statistics["action"][name]) for name in ("q01", "q99"))
    assert np.shape(drawn) == (99, 4, 2) and (drawn >= low.min(0)).all() and (drawn <= high.max(0)).all()


def test_pages_and_tables_show_them(dataset, monkeypatch):
    monkeypatch.setitem(embodiments.EMBODIMENTS, "fake", STEPWISE)
    lines = command.table(dataset.statistics).splitlines()
    assert [line.strip() for line in lines if "at step" in line] == ["at step 0 of 16", "at step 15 of 16"]
    assert len([line for line in lines if "grip" in line]) == 3  # twice the action, and absolute
    maker = SampleMaker(dataset, 0, LAYOUT, tokenize, fields=BATCH)
    window = next(i for i in range(len(maker.windows)) if maker.windows[i] == (1, 5))
    trip = check_embodiment.round_trip(maker, window, maker(window, 0))
    np.testing.assert_allclose(trip.back, trip.recorded, atol=1e-4)
    assert max(row["share"] for row in check_embodiment.errors(dataset, [trip])) < 1e-4
    assert inspect_data.action_histograms(dataset, maker, [dataset.source[1]])[:5] == b"<?xml"


JOINTS = tuple(Dimension(f"joint{i}", slot) for i, slot in enumerate((0, 1, 14)))
ARM = dataclasses.replace(STEPWISE, name="arm", state=JOINTS, action=tuple(
    dataclasses.replace(dim, relative_to=dim.name if dim.slot < 14 else None) for dim in JOINTS))


def trained_with() -> dict:
    """Of five steps, as a run has them."""
    rng = np.random.default_rng(0)
    return {"actions_per_block": 5, "state": {key: rng.normal(size=3).tolist() for key in norm_stats.STATISTICS},
            "action": {"count": 9, **{key: rng.normal(size=(5, 3)).tolist() for key in norm_stats.STATISTICS}}}


def written(tmp_path, robot=ARM, statistics=None) -> tuple:
    """(file, content) of published statistics."""
    content = norm_stats.published(robot, norm_stats.TABLES[1], statistics or trained_with())
    file = tmp_path / "norm_stats.json"
    file.write_text(json.dumps(content))
    return file, content


def test_published_statistics_come_in_as_they_went_out(tmp_path):
    known = trained_with()
    file, content = written(tmp_path)
    arms = content["norm_stats"]["action.arm.position"]["q01"]
    assert arms == [row[:2] for row in known["action"]["q01"]]  # [chunk, dimensions of the group]
    found = norm_stats.read(file, None, 1, ARM, 5)
    for part in ("state", "action"):
        assert {key: found[part][key] for key in norm_stats.STATISTICS} == {
            key: known[part][key] for key in norm_stats.STATISTICS}
    cut = norm_stats.read(file, None, 1, ARM, 3)
    assert cut["action"]["mean"] == known["action"]["mean"][:3]
    short = dataclasses.replace(ARM, horizon=4)
    found = norm_stats.read(file, None, 1, short, 5)
    assert np.shape(found["action"]["mean"]) == (4, 3)
    again = written(tmp_path, short, found)[1]["norm_stats"]["action.arm.position"]["mean"]
    assert len(again) == 5 and again[4] == again[3] == known["action"]["mean"][3][:2]  # the server wants all steps


def test_a_group_with_one_line_has_it_at_every_step(tmp_path):
    """As published for what is absolute, beside groups that are relative to the state."""
    file, content = written(tmp_path)
    for key, rows in content["norm_stats"]["action.effector.position"].items():
        content["norm_stats"]["action.effector.position"][key] = rows[0]
    file.write_text(json.dumps(content))
    found = np.array(norm_stats.read(file, None, 1, ARM, 5)["action"]["q99"])
    assert (found[:, 2] == trained_with()["action"]["q99"][0][2]).all() and len(np.unique(found[:, 0])) == 5


@pytest.mark.parametrize("change, chunk, message", [
    (None, 6, r"action\.arm\.position has statistics for 5 steps of a chunk; the robot executes 6"),
    (lambda s: s["action.arm.position"]["q01"].pop(), 5, r"action\.arm\.position: q01: expected 5 x 2 numbers, found 4 x 2"),
    (lambda s: s["action.arm.position"]["q01"][1].pop(), 5, r"q01: steps have different numbers of dimensions: \[1, 2\]"),
    (lambda s: s["action.arm.position"]["q01"].__setitem__(2, 3.0), 5, r"action\.arm\.position: q01.*expected a list"),
    (lambda s: s["action.arm.position"].update(q01={"0": 1}), 5, r"action\.arm\.position: q01.*expected a list"),
    (lambda s: s["observation.state.arm.position"].update(s["action.arm.position"]), 5,
     r"observation\.state\.arm\.position has statistics for each step of a chunk; one line for all is needed")])
def test_published_statistics_that_do_not_fit_are_named(tmp_path, change, chunk, message):
    file, content = written(tmp_path)
    if change:
        change(content["norm_stats"])
        file.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        norm_stats.read(file, None, 1, ARM, chunk)
    with pytest.raises(WeightsError, match="per_step=True|expected|different"):
        norm_stats.read(file, None, 1, dataclasses.replace(ARM, per_step=False), chunk)


def test_a_format_without_steps_says_so(dataset):
    with pytest.raises(ValueError, match="'fake' is declared per_step=True, and this format has one line of statistics"):
        experiment.metadata(STEPWISE, dataset.statistics, LAYOUT)
