"""Exports in LeRobot's layout and the episodes behind the plug-in. LeRobot is not needed: benchmarks/check_lerobot.py
runs its own commands on such a folder."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipelines.robots.embodiments import get_embodiment
from launch import export
from launch.exporting import lerobot
from launch.exporting.exported import open_export
from launch.serving.engine import Engine
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from launch.simulation.lerobot import Episodes, FeatureError, announce, check_action, open_episodes
from tests import tiny_policy
from tests.serving import client, serving
from world_model.weights.safetensors_io import WeightsError

OURS = {"version": 1, "embodiment": "pusht", "dataset": "toy", "cameras": {}, "weights": {}}
CAMERA = "observation.images.image"


@pytest.fixture(scope="module")
def exported(quick_compiles, tmp_path_factory):
    """(the run, its folder for LeRobot). Every family's export is packed in test_families.py."""
    out = tmp_path_factory.mktemp("out") / "folder"
    restored = restore(tiny_policy.write(tmp_path_factory.mktemp("run")))
    export.export(restored, out, format_name="lerobot", license="apache-2.0")
    return restored, out


def no_model(runs):
    raise AssertionError("what is observed is refused before")


def robot_of(restored):
    return choose_robot(restored, None, None)


def seen(rows: int, seed: int = 0, height: int = 32, **other) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 256, (rows, 3, height, height))
    return {CAMERA: (whole / np.float32(255)).astype(np.float32),
            "observation.state": rng.uniform(100, 400, (rows, 2)).astype(np.float32), **other}


def test_the_folder_is_lerobots(exported):
    restored, out = exported
    config = json.loads((out / "config.json").read_text())
    assert config["type"] == "wamax" and config["license"] == "apache-2.0"
    assert config["input_features"] == {CAMERA: {"type": "VISUAL", "shape": [3, 32, 32]},
                                        "observation.state": {"type": "STATE", "shape": [2]}}
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [2]}}
    weights = load_file(out / "model.safetensors")
    assert sum(x.size for x in weights.values()) >= 0.99 * sum(x.size for x in restored.params.values())
    assert {path.parent.name for path in (out / "wamax").rglob("*.safetensors")} <= {"encoders"}  # each stands once


def test_processors_carry_the_statistics_and_change_nothing(exported):
    restored, out = exported
    expected = restored.statistics["toy"]
    for name in ("policy_preprocessor", "policy_postprocessor"):
        steps = json.loads((out / f"{name}.json").read_text())["steps"]
        step = next(step for step in steps if "state_file" in step)
        assert set(step["config"]["norm_map"].values()) == {"IDENTITY"}
        found = load_file(out / step["state_file"])
        np.testing.assert_array_equal(found["observation.state.mean"], np.float32(expected["state"]["mean"]))
        np.testing.assert_array_equal(found["action.q99"], np.float32(expected["action"]["q99"]))
        assert {x.dtype.name for x in found.values()} == {"float32"}


def test_the_card_says_what_it_is(exported):
    restored, out = exported
    card = (out / "README.md").read_text()
    parity = json.loads((out / "wamax/parity.json").read_text())
    assert "license: apache-2.0\n---" in card and "| [2] | target_x, target_y |" in card
    assert f"the JAX model and the PyTorch runtime is {parity['max']:.3g}; 0.0001 is allowed" in card
    assert "statistics of dataset 'toy', hash" in card and "trained from scratch" in card
    unsaid = lerobot.model_card(out, robot_of(restored), lerobot.make_features(robot_of(restored), {}), None)
    assert "license:" not in unsaid and "Not stated by whoever exported it" in unsaid


@pytest.mark.filterwarnings("ignore:evaluate")
def test_commands_are_those_of_the_server(exported):
    """Two episodes at once, three chunks of four steps: a first frame, then the frames really seen."""
    restored, out = exported
    episodes, steps = open_episodes(out, "cpu", sessions=2, seed=0, execute=0), range(9)
    batches = [seen(2, seed) for seed in steps]
    found = np.stack([episodes.act(batch, ["", "push"]) for batch in batches])
    with serving(Engine(restored, robot_of(restored), sessions=2, batch_sizes=(1,))) as (port, _):
        policy, expected = client(port), []
        for row, prompt in enumerate([get_embodiment("pusht").instruction, "push"]):
            for first in steps[::4]:
                rows = [batches[i] for i in range(max(0, first - 3), first + 1)]
                frames = np.stack([np.rint(255 * b[CAMERA][row]).astype(np.uint8).transpose(1, 2, 0) for b in rows])
                expected.append(policy.infer({
                    "observation/image": frames, "observation/state": rows[-1]["observation.state"][row],
                    "session_id": str(row), "prompt": prompt, "reset": first == 0})["actions"])
    expected = np.concatenate(expected).reshape(2, 12, 2)[:, :9].swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, atol=0.03)  # of 300: 1e-4
    other = open_episodes(out, "cpu", sessions=2, seed=0, execute=0)  # the same noise
    flipped = batches[0] | {CAMERA: batches[0][CAMERA][:, :, ::-1].copy()}
    assert np.abs(other.act(flipped, ["", "push"]) - found[0]).max() > 0.3  # ten times what is allowed above


@pytest.mark.filterwarnings("ignore:evaluate")
def test_chunks_alone_new_episodes_and_shorter_chunks(exported):
    """What is not told of the steps between is a new window, never an error."""
    _, out = exported
    episodes = open_episodes(out, "cpu", sessions=1, seed=0, execute=3)
    chunks = [episodes.chunk(seen(1, seed), ["push"]) for seed in range(2)]
    assert chunks[0].shape == (1, 4, 2) and np.abs(chunks[0] - chunks[1]).max() > 0.1
    for _ in range(2):
        episodes.reset()
        acted = [episodes.act(seen(1, seed), ["push"]) for seed in range(5)]
    assert episodes.runs[0].seed == 2 and len(episodes.runs[0].actions) == 5 and np.isfinite(acted).all()
    assert len(episodes.runs[0].frames) == 4  # no more than the next question may need


def test_what_serves_an_export_serves_the_folder(exported, tmp_path):
    _, out = exported
    shutil.copytree(out, tmp_path / "copy")
    model = open_export(tmp_path / "copy")
    assert Engine(model, choose_robot(model, None, None), sessions=1).embodiment.name == "pusht"
    (tmp_path / "copy/model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"copy/model.safetensors: missing; fetch the folder again"):
        open_episodes(tmp_path / "copy", "cpu", sessions=1, seed=0, execute=0)


def test_a_folder_of_another_version_is_refused(tmp_path):
    def refused(sentence: str, **ours):
        (tmp_path / "config.json").write_text(json.dumps({"type": "wamax", "wamax": OURS | ours}))
        with pytest.raises(WeightsError, match=sentence):
            lerobot.read_config(tmp_path)

    refused(r"config.json: wamax is for version 2 of lerobot_policy_wamax, and this is version 1: install that", version=2)
    refused(r"config.json: wamax: cameras = 3: expected a map", cameras=3)
    refused(r"'../x' at 'model.safetensors': expected a file's name", weights={"../x": "model.safetensors"})
    refused(r"at 'a/../../x': expected a file's name and a path", weights={"x": "a/../../x"})
    (tmp_path / "config.json").write_text('{"type": "act"}')
    with pytest.raises(WeightsError, match="expected a policy of type 'wamax', found 'act'; give a folder of launch.ex"):
        lerobot.read_config(tmp_path)


@pytest.mark.parametrize("batch,tasks,sentence", [
    ({"observation.image": np.zeros((1, 3, 8, 8), np.float32)}, [""],
     r"lacks 'observation.images.image', which is camera 'image' of robot 'pusht'; it has \['observation.image'\]; rename "
     r"""yours: --rename_map='{"observation.image": "observation.images.image"}'"""),
    ({"observation.state": np.zeros((1, 2))}, [""], "which is camera 'image' of robot 'pusht'; it has no camera$"),
    (seen(1) | {CAMERA: np.zeros((1, 8, 8, 3), np.float32)}, [""], r"should be float32 \[rows, 3, h.* \[1, 8, 8, 3\]"),
    (seen(1) | {CAMERA: np.full((1, 3, 8, 8), 255, np.float32)}, [""], "should be from 0 to 1, found 255 to 255"),
    ({CAMERA: seen(1)[CAMERA]}, [""], "lacks 'observation.state', the 2 numbers agent_x, agent_y of robot 'pusht'"),
    (seen(1, **{"observation.state": np.zeros((1, 1))}), [""],
     r"'observation.state' has 1 dimensions, and robot 'pusht' has 2 \(agent_x, agent_y\): LeRobot lacks agent_y"),
    (seen(1, **{"observation.state": np.zeros((1, 5))}), [""], "the policy has nothing for dimensions 2 to 4"),
    (seen(2), ["push"], "found 2 pictures, 2 states and 1 tasks for 2 episodes under way; call reset()"),
    (seen(3), ["push"] * 3, "3 episodes at once, and there is room for 2: say --policy.sessions=3"),
])
def test_features_that_do_not_fit_are_named(exported, batch, tasks, sentence):
    robot = announce(robot_of(exported[0]))
    with pytest.raises(ValueError, match=sentence):
        Episodes(no_model, robot, {"image": CAMERA}, 4, most=2).act(batch, tasks)


def test_actions_chunks_and_tasks_that_do_not_fit_are_named(exported, tmp_path):
    robot = announce(robot_of(exported[0]))
    check_action(robot, (2,))
    with pytest.raises(FeatureError, match=r"'action' has 7 dimensions, .* \(target_x, target_y\): the policy has nothing"
                                           " for dimensions 2 to 6"):
        check_action(robot, (7,))
    with pytest.raises(ValueError, match="n_action_steps = 5: a chunk has 4 actions; give 1 to that"):
        Episodes(no_model, robot, {"image": CAMERA}, 5, most=2)
    droid = announce(robot_of(restore(tiny_policy.write(tmp_path, tiny_policy.DROID))))
    three = {view: f"observation.images.{view}" for view in droid.sizes}
    batch = {key: np.zeros((1, 3, 8, 8), np.float32) for key in three.values()}
    with pytest.raises(FeatureError, match="has no task, and robot 'test_droid' no instruction of its own"):
        Episodes(no_model, droid, three, 1, most=2).act(batch | {"observation.state": np.zeros((1, 8))}, [""])


def test_cameras_have_the_names_of_the_set_that_was_trained_on(exported):
    restored = exported[0]
    robot, config = robot_of(restored), restored.config
    assert lerobot.camera_keys(restored, robot) == {"image": CAMERA}
    with config.unlocked():
        config.data.datasets.toy = {"images": {"image": "observation.image"}}
        assert lerobot.camera_keys(restored, robot) == {"image": "observation.image"}
        del config.data.datasets.toy
