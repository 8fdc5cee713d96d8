"""The model in the simulator: what it is shown, what is executed, what is counted."""

import json

import numpy as np
import pytest
from PIL import Image

from launch import rollout
from launch.serving.engine import Engine
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from launch.simulation import closed_loop, episode_pictures, simulators
from launch.simulation.closed_loop import ModelPolicy, Run
from launch.simulation.simulators import Simulation
from tests import tiny_policy
from world_model.training import checkpoint


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    return restore(tiny_policy.write(tmp_path_factory.mktemp("closed_loop")))


@pytest.fixture(scope="module")
def engine(restored):
    return Engine(restored, choose_robot(restored, None, None), sessions=3, batch_sizes=(2,))


def play(engine, seeds, execute=4, steps=10):
    """(the runs, every request that the engine saw)."""
    seen, plain = [], Engine.step

    def step(self, requests):
        seen.append(requests)
        return plain(self, requests)

    runs = simulators.TASKS["pusht"].make_runs(seeds, 32, steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", step)
        closed_loop.play(ModelPolicy(engine, "push"), runs, execute)
    return runs, seen


@pytest.fixture(scope="module")
def played(engine):
    return play(engine, [1, 2, 3])


def test_the_model_sees_what_happened_and_its_commands_are_executed(played, engine):
    """Two blocks of four steps: the first frame, then the four of the block, then a new window."""
    runs, seen = played
    assert [len(requests) for requests in seen] == [2, 1] * 3  # three episodes in batches of two
    assert [[r.block for r in requests] for requests in seen] == [[1, 1], [1], [2, 2], [2], [1, 1], [1]]
    run, asked = runs[2], [seen[i][0] for i in (1, 3, 5)]
    assert all(request.text[0].tolist() == engine.tokenize("push")[0].tolist() for request in asked)
    for request, steps in zip(asked, ([0], [1, 2, 3, 4], [8])):
        np.testing.assert_array_equal(request.views["image"], [run.frames[i]["image"] for i in steps])
        np.testing.assert_array_equal(request.state, run.states[steps[-1]])
    assert len(run.actions) == len(run.episode.coverage) == 10 and len(run.frames) == 11
    assert [begin for begin, _ in run.imagined] == [0, 4, 8] and len(run.gaps) == 1
    assert not np.array_equal(run.frames[0]["image"], run.frames[-1]["image"])
    assert len(episode_pictures.extremes(runs, 0)) == 0
    both = episode_pictures.side_by_side(*episode_pictures.seen_and_imagined(run, engine))
    assert both.shape == (11, 256, 2 * 256 + 8, 3)


def test_an_episode_does_not_depend_on_the_others(played, engine):
    alone, _ = play(engine, [2])
    np.testing.assert_allclose(alone[0].actions, played[0][1].actions, rtol=1e-3)
    assert np.abs(np.subtract(played[0][0].actions, played[0][1].actions)).max() > 1


def test_a_part_of_a_chunk_begins_a_new_window(engine):
    runs, seen = play(engine, [1], execute=3, steps=7)
    assert [requests[0].block for requests in seen] == [1, 1, 1]
    np.testing.assert_array_equal(seen[1][0].views["image"], [runs[0].frames[3]["image"]])


def test_trivial_policies_and_the_expert():
    """The expert, which sees the pose, does what the others cannot."""
    statistics = {"action": {"q01": [100, 100], "q99": [400, 400]}}
    found = {}
    for name, policy, hold in (("still", closed_loop.repeat_last, 1), ("random", closed_loop.Random(statistics, 4), 4),
                               ("expert", closed_loop.expert, 1)):
        runs = simulators.TASKS["pusht"].make_runs(range(3), 32, 140)
        closed_loop.play(policy, runs, hold)
        found[name] = closed_loop.scores(runs)
        if name == "still":
            np.testing.assert_allclose(runs[0].states[-1], runs[0].states[0], atol=1.0)
    assert found["expert"]["coverage"] > 0.8 > max(found["still"]["coverage"], found["random"]["coverage"])
    assert found["expert"]["successes"] >= 2 and found["still"]["successes"] == 0
    gain = closed_loop.paired_difference(found["expert"], found["still"])
    assert gain["coverage"] == pytest.approx(found["expert"]["coverage"] - found["still"]["coverage"], abs=1e-3)


class Finished:
    def __init__(self, solved: bool, coverage: float):
        self.solved, self.coverage = solved, [coverage / 2, coverage]


def test_scores():
    """Oracle: Wilson's interval of 8 of 10 (textbook: 0.490 to 0.943)."""
    runs = [Run(i, Finished(i < 8, 0.9 if i < 8 else 0.1), actions=[0] * 5) for i in range(10)]
    found = closed_loop.scores(runs)
    assert found["success_rate"] == 0.8 and found["successes"] == 8 and found["steps"] == 5
    np.testing.assert_allclose(found["success_rate_ci"], [0.4902, 0.9433], atol=1e-4)
    assert found["coverage"] == pytest.approx(0.74) and 0.4 < found["coverage_ci"][0] < 0.74 < found["coverage_ci"][1] < 0.95
    assert closed_loop.mean_interval(np.ones(5)) == [1.0, 1.0]


def test_evaluation_as_a_whole(restored, tmp_path):
    """What the command writes: JSON without NaN, videos of best and worst."""
    simulation = Simulation.open(restored, None, 2, 2)
    result, runs = rollout.evaluate(simulation, seed=5, max_steps=6, latency=1, overlap=1, say=lambda _: None)
    text = json.dumps(result, allow_nan=False)
    assert set(json.loads(text)["policies"]) == {"model", "repeat_last", "mean", "random", "expert"}
    assert set(result["latency"]) == {"synchronous", "asynchronous", "not_grounded"}
    assert result["against"]["policy"] in ("repeat_last", "mean", "random") and result["imagination_gap"] > 0
    rollout.write(tmp_path, result, runs, simulation.engine, 1)
    assert json.loads((tmp_path / "closed_loop.json").read_text()) == json.loads(text)
    with Image.open(tmp_path / "strip.png") as picture:  # eight frames as they came, and below them as imagined
        assert picture.size == (8 * (128 + 8), 2 * (128 + 8))
    assert sorted(p.name[:5] for p in tmp_path.glob("*.mp4")) == ["best_", "worst"]
    assert all(p.stat().st_size > 1000 for p in tmp_path.glob("*.mp4"))
    with pytest.raises(ValueError, match="--baselines=expret: there are repeat_last, mean, random, expert"):
        rollout.evaluate(simulation, seed=0, baselines=["expret"])
    with pytest.raises(ValueError, match="--execute=5: the model predicts 4 actions"):
        rollout.evaluate(simulation, seed=0, execute=5)


def test_the_model_alone(restored):
    simulation = Simulation.open(restored, None, 2, 2)
    result, _ = rollout.evaluate(simulation, seed=5, max_steps=4, baselines=[], say=lambda _: None)
    assert set(result["policies"]) == {"model"} and "against" not in result


@pytest.mark.parametrize(("execute", "rendered"), [(4, 10), (3, 4)])
def test_what_the_model_does_not_look_at_is_not_rendered(restored, execute, rendered, monkeypatch, tmp_path):
    """Its commands are the same, bit for bit."""
    from data_pipelines.simulators.pusht.task import Episode

    taken, views = [], Episode.views
    monkeypatch.setattr(Episode, "views", lambda self: taken.append(self) or views(self))
    simulations = [Simulation.open(restored, None, 1, 1) for _ in range(2)]
    made = [rollout.evaluate(simulation, seed=5, execute=execute, max_steps=9, baselines=[], pictures=pictures,
                             say=lambda _: None) for simulation, pictures in zip(simulations, (True, False))]
    np.testing.assert_array_equal(made[0][1][0].actions, made[1][1][0].actions)
    assert len(taken) == 10 + rendered
    rollout.write(tmp_path, *made[1], simulations[1].engine, videos=0)
    assert [path.name for path in tmp_path.iterdir()] == ["closed_loop.json"]


def test_what_needs_no_pictures_has_none_rendered():
    runs = simulators.TASKS["pusht"].make_runs([0], 32, 3)
    closed_loop.play(closed_loop.expert, runs, 1, every=0)
    assert not runs[0].frames and len(runs[0].states) == 4


def test_a_missing_simulator_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "data_pipelines.simulators.pusht.task", None)
    with pytest.raises(ValueError, match=r"simulator of pusht needs .*pip install -e '.\[sim\]'"):
        simulators.TASKS["pusht"].make_runs([0], 32, 5)


def test_a_task_is_chosen_for_the_robot_or_named():
    assert simulators.choose_task(None, {"pusht"}).name == "pusht"
    assert simulators.choose_task("pusht-slide", {"pusht"}).options == {"task": "slide"}
    assert simulators.choose_task("reach-v3", {"metaworld_20hz"}).instruction == "reach the red ball"
    assert simulators.choose_task("reach-v3-green", {"metaworld_20hz"}).options == {"task": "reach-v3", "look": "green"}
    with pytest.raises(ValueError, match="--task=pusht: the model drives metaworld_20hz; tasks for it are: button-press"):
        simulators.choose_task("pusht", {"metaworld_20hz"})
    with pytest.raises(ValueError, match="no task: the model drives droid; tasks for it are: none; all tasks: pusht, "):
        simulators.choose_task(None, {"droid"})


def test_a_checkpoint_of_another_version_is_named(restored, monkeypatch):
    read = checkpoint.read_json

    def without_a_key(*place):
        found = read(*place)
        if place[-1] == "meta":
            del found["config"]["encoders"]["chunk"]
        return found

    monkeypatch.setattr(checkpoint, "read_json", without_a_key)
    with pytest.raises(checkpoint.CheckpointError, match="step .*: its config is of another version .* key: .*chunk"):
        restore(restored.workdir)
