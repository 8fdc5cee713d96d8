"""launch.dream: videos that a model imagines become a dataset, with the actions that they show and where they come from."""

import dataclasses
import functools
import json
import types

import numpy as np
import pytest

from data_pipelines import imagined
from data_pipelines.episode import Episode
from data_pipelines.imagined import ImaginedEpisode
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.sources import make_source
from launch import dream
from launch.serving.engine import Answer, Engine, Request
from launch.serving.servable import choose_robot
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from launch.simulation import dreaming
from launch.simulation.closed_loop import Run
from launch.simulation.simulators import Simulation
from tests import tiny_policy
from tests.dot_world import Dot, picture
from tests.fake_source import clips, robots
from world_model.training import checkpoint
from world_model.training.checkpoint import CheckpointError

STEPS = 4
COLUMNS = {"images": {"image": "observation.images.image"}, "state": "observation.state", "action": "action"}
PROVENANCE = {"weights": "aa", "workdir": "runs/x", "step": 3, "seed": 0, "most_apart": 2.0}


dot = functools.partial(picture, spread=8.0)


class Still(Dot):
    """A simulated start: the dot is in the middle."""

    spread, place = 8.0, np.array([8.0, 8.0])


class Model:
    """Imagines a dot that goes right by one pixel a step; its labels are right but in blocks that `lies` names."""

    last_block, embodiment = None, get_embodiment("pusht")
    robot = types.SimpleNamespace(horizon=STEPS, canvas=lambda views: views["image"],
                                  layout=types.SimpleNamespace(frame_stride=2, block_frames=2))

    def __init__(self, lies=()):
        self.lies, self.asked = lies, []

    def tokenize(self, instruction):
        return np.zeros(1, int), 1

    def decode(self, latents):
        return latents

    def step(self, requests):
        self.asked.append(requests)
        return [Answer(np.zeros((4, 2)), None, self.video(self.way(r)), {}) for r in requests]

    def way(self, request):
        return request.state + np.arange(1, STEPS + 1)[:, None] * [0, 1]

    def label(self, requests):
        return [self.way(r) + 3.0 * (r.block - 1 in self.lies) for r in requests]

    def follow(self, requests):
        return [self.video(r.in_flight) for r in requests]

    def video(self, commands):
        return np.stack([dot(place) for place in commands[1::2]])


def test_a_video_is_labelled_and_ends_before_actions_that_lead_elsewhere():
    model, runs = Model(lies=(1,)), [Run(seed, Still()) for seed in (7, 8)]
    dreaming.dream(model, "push", runs, 3, lambda state, commands: commands)
    assert [len(x) for x in (runs[0].frames, runs[0].states, runs[0].actions, runs[0].gaps)] == [13, 13, 12, 3]
    assert runs[0].gaps[0] == 0 < 5 < runs[0].gaps[1]
    episode = dreaming.kept(model, runs[0], "push", most_apart=5)
    np.testing.assert_allclose(episode.actions, 8 + np.arange(1, 5)[:, None] * [0, 1])
    np.testing.assert_allclose(episode.states, 8 + np.arange(4)[:, None] * [0, 1])  # those of the commands before
    np.testing.assert_array_equal(episode.frames[2], dot((8, 10)))
    np.testing.assert_array_equal(model.asked[1][0].views["image"], [dot((8, 10)), dot((8, 12))])
    np.testing.assert_array_equal(model.asked[1][0].done, episode.actions)
    assert len(dreaming.kept(model, runs[0], "push", most_apart=300).frames) == 12
    assert dreaming.kept(model, runs[0], "push", most_apart=-1) is None


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [ImaginedEpisode(rng.integers(0, 2, (n, 1, 1, 3)).repeat(64, 1).repeat(64, 2).astype(np.uint8) * 200,
                                *np.float32(rng.normal(size=(2, n, 2))), text) for n, text in ((12, "push"), (7, "pull"))]
    imagined.write(tmp_path / "dreams", episodes, view="image", rate=10.0, provenance=PROVENANCE)
    return tmp_path / "dreams", episodes


def test_what_is_written_is_read_as_any_dataset(folder):
    out, episodes = folder
    source = make_source("lerobot", "dreams", path=str(out), **COLUMNS)
    assert source.lengths().tolist() == [12, 7] and set(source.rates()) == {10.0}
    for written, read in zip(episodes, source, strict=True):
        np.testing.assert_array_equal(read.state, written.states)
        np.testing.assert_array_equal(read.action, written.actions)
        assert read.instruction == written.instruction
        frames = read.read_frames(np.arange(read.length))["image"]
        assert np.abs(frames.astype(int) - written.frames).mean() < 8  # yuv420


def test_imagined_video_without_its_provenance_is_refused(folder):
    out, _ = folder
    (out / "meta/imagined.json").write_text(json.dumps(PROVENANCE | {"weights": 3}))
    with pytest.raises(ValueError, match=r"imagined.json.*weights"):
        make_source("lerobot", "dreams", path=str(out), **COLUMNS)
    (out / "meta/imagined.json").unlink()
    with pytest.raises(ValueError, match="its video was imagined by a model, and meta/imagined.json, which says by which"):
        make_source("lerobot", "dreams", path=str(out), **COLUMNS)


def recorded(move, seed, episodes=40, steps=30) -> list[Episode]:
    """Episodes of a robot at a random place, angle 2 rad at most, whose random commands `move` it: [x, cos, sin]."""
    rng, found = np.random.default_rng(seed), []
    for index in range(episodes):
        at, states, commands = rng.uniform(-1, 1, 2), [], rng.uniform(-1, 1, (steps // 10, 2)).repeat(10, axis=0)
        for command in commands:
            states.append([at[0], np.cos(at[1]), np.sin(at[1])])
            at = move(at, command)
        found.append(Episode("toy", index, steps, 10.0, "go", np.float32(states), np.float32(commands), dict))
    return found


@pytest.mark.parametrize("move", [lambda at, command: at + command * [0.02, 0.03],
                                  lambda at, command: at + (command - at) * [0.5, 0.02]], ids=["difference", "target"])
def test_states_follow_commands_as_they_did_in_the_recordings(move):
    """A difference that is obeyed in part, a turn that changes a cosine, a target that is approached."""
    follow, episode = dreaming.fit_states(recorded(move, 0)), recorded(move, 1)[0]
    found = follow(episode.state[0], episode.action[:8])
    moved = np.abs(episode.state[8] - episode.state[0]).max()
    assert np.abs(found - episode.state[1:9]).max() < 0.1 * moved
    lowest = np.min([one.state.min(0) for one in recorded(move, 0)], axis=0)
    assert (follow(episode.state[0], np.full((200, 2), -9.0)) >= lowest).all()


def test_recordings_that_say_nothing_of_a_state():
    blind = [dataclasses.replace(one, state=None) for one in recorded(np.add, 0)]
    with pytest.raises(ValueError, match="hold no state of the robot"):
        dreaming.fit_states(blind)


def test_states_are_fitted_to_the_robots_own_training_episodes():
    own = dataclasses.replace(robots((40, 60, 50)), episodes=np.array([0, 2]))
    other = dataclasses.replace(clips((30,), name="other"), embodiment=get_embodiment("pusht"))
    data = types.SimpleNamespace(training=(other, own, dataclasses.replace(clips(), episodes=np.arange(2))))
    simulation = types.SimpleNamespace(engine=types.SimpleNamespace(embodiment=own.embodiment),
                                       restored=types.SimpleNamespace(data=data))
    found = list(dream.recordings(simulation))
    assert [one.length for one in found] == [40, 50]
    np.testing.assert_array_equal(found[1].state, own.source[2].state)


@pytest.fixture
def pushes(monkeypatch):
    """What the tiny checkpoints are said to have learned from."""
    episodes = [dataclasses.replace(one, state=256 + 200 * one.state[:, :2], action=256 + 200 * one.action)
                for one in recorded(lambda at, command: at + (command - at) / 2, 0)]
    monkeypatch.setattr(dream, "recordings", lambda simulation: iter(episodes))


@pytest.fixture(scope="module", params=["debug", "lingbot_va_debug"])
def engine(request, tmp_path_factory):
    restored = restore(tiny_policy.write(tmp_path_factory.mktemp(request.param), arm=request.param))
    return Engine(restored, choose_robot(restored, None, None), sessions=2, batch_sizes=(2,))


@pytest.mark.filterwarnings("ignore:evaluate")
def test_a_model_labels_the_video_that_it_imagined_last(engine):
    """By inverse dynamics: of a family that goes from video to actions anyway, these are the actions that it predicts;
    of another video they are others."""
    frame = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), np.uint8)
    asked = [Request(row, 1, {"image": frame}, np.array([200.0, 300.0]), engine.tokenize("push"), (row, 0),
                     np.zeros((0, 2))) for row in range(2)]
    answers, labels = engine.step(asked), engine.label(asked)
    np.testing.assert_allclose(engine.label(asked), labels, rtol=1e-4, atol=1e-3)  # its video stays what it was
    if engine.model.experiment.family.name == "lingbot_va":
        predicted = [engine.guard.check(chunk, asked[0].state, None).actions for chunk in labels]
        np.testing.assert_allclose(predicted, [answer.actions for answer in answers], rtol=1e-4)
    led_to = engine.follow([r._replace(in_flight=np.full((4, 2), 400.0)) for r in asked])
    assert np.abs(led_to - np.stack([answer.latents for answer in answers])).max() > 1e-3
    assert np.abs(np.stack(engine.label(asked)) - labels).max() > 5e-3  # a hundred times what rounding does


@pytest.mark.filterwarnings("ignore:evaluate")
def test_dreams_say_where_they_come_from_and_fill_training_batches(tmp_path, pushes):
    restored, out = restore(tiny_policy.write(tmp_path / "run", arm="lingbot_va_debug")), tmp_path / "dreams"
    simulation = Simulation.open(restored, "pusht-slide", dream.BATCH, dream.BATCH)
    options = {"episodes": 3, "blocks": 4, "seed": 5, "say": str}
    with pytest.raises(ValueError, match="--most_apart=0 leaves none of 3 episodes: their first blocks are"):
        dream.write_dreams(simulation, out, most_apart=0.0, **options)
    provenance = dream.write_dreams(simulation, out, most_apart=255.0, prompt="push it", **options)
    assert json.loads((out / "meta/imagined.json").read_text()) == provenance
    assert [each["seed"] for each in provenance["each"]] == [5, 6, 7] and provenance["most_apart"] == 255
    meta = checkpoint.read_json(tmp_path / "run/checkpoints", 1, "meta")
    assert provenance["weights"] == checkpoint.weights_hash(meta, averaged=False) and provenance["step"] == 1
    words = dream.describe(provenance, out)
    assert words.startswith("3 of 3 episodes kept, 48 steps") and "c.data.datasets.dreams = ConfigDict({" in words
    config = tiny_policy.config(arm="lingbot_va_debug")
    config.data.datasets = eval(words.split("dreams = ", 1)[1], {"ConfigDict": lambda entry: {"dreams": entry}})
    config.data.holdout, config.encoders.fit_clips = 0.0, 2
    with Experiment(config).data().loader() as loader:
        batch = next(loader)
    assert batch["action_mask"].any(axis=(1, 2)).all() and np.abs(batch["actions"]).max() > 0 < batch["video"].std()
    with pytest.raises(FileExistsError, match="dreams is there already: choose another directory"):
        dream.write_dreams(simulation, out, most_apart=255.0, **options)


def test_models_that_cannot_say_whose_dreams_they_are_or_imagine_nothing(tmp_path, monkeypatch, pushes):
    restored = restore(tiny_policy.write(tmp_path / "run"))
    simulation = Simulation.open(restored, None, dream.BATCH, dream.BATCH)
    options = {"episodes": 1, "blocks": 1, "most_apart": 1.0, "say": str}
    read = checkpoint.read_json
    monkeypatch.setattr(checkpoint, "read_json", lambda *at: {**read(*at), "hashes": {}})
    with pytest.raises(CheckpointError, match="its dreams could not say whose they are"):
        dream.write_dreams(simulation, tmp_path / "dreams", **options)
    family = dataclasses.replace(restored.experiment.family, imagines_video=False)
    monkeypatch.setattr(Experiment, "family", family)
    with pytest.raises(ValueError, match="the model's family imagines no video: it is no world"):
        dream.write_dreams(simulation, tmp_path / "dreams", **options)
