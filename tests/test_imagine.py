"""launch.imagine: a model that follows its actions is told from one that ignores them, and the command shows both."""

import io
import json
import types

import numpy as np
import pytest
from PIL import Image

from launch import imagine
from launch.serving.engine import Answer
from launch.simulation import obedience
from launch.simulation.closed_loop import Run
from launch.simulation.simulators import Simulation
from tests.dot_world import SIDE, Dot
from tests.serving import make_engine

STEPS = 4


class World(Dot):
    """The dot goes where it is told, from where the seed puts it."""

    def __init__(self, seed: int):
        self.place = np.random.default_rng(seed).uniform(4, 12, 2)
        self.goal = np.random.default_rng(seed + 99).uniform(0, 16, 2)

    def expert(self):
        return self.place + (self.goal - self.place) / 3

    def step(self, action):
        self.place = np.clip(action, 0, SIDE - 1)


def fresh(seeds):
    return [Run(seed, World(seed)) for seed in seeds]


class Engine:
    """Imagines the world as it is told to go on, or `follows` something else; a latent is a picture."""

    imagines_video, last_block, block_frames = True, None, 2
    robot = types.SimpleNamespace(horizon=STEPS, layout=types.SimpleNamespace(frame_stride=2),
                                  canvas=lambda views: views["image"])

    def __init__(self, follows):
        self.follows, self.imagined = follows, None

    def tokenize(self, instruction):
        return np.zeros(1, int), 1

    def decode(self, latents):
        return np.uint8(latents)

    def step(self, requests):
        request, = requests
        if request.block == 2:
            seen = request.views["image"].astype(float)
            return [Answer(np.zeros((1, 2)), float(np.sqrt(np.square(seen - self.imagined).mean())), None, {})]
        world = World(0)
        world.place, frames = request.state, []
        for i, action in enumerate(self.follows(request.in_flight)):
            world.step(action)
            frames += [world.views()["image"].astype(float)] * (i % 2)
        self.imagined = np.stack(frames)
        return [Answer(np.zeros((1, 2)), None, self.imagined, {})]


def measured(follows, starts=6):
    return list(obedience.measure(Engine(follows), "push", fresh, range(starts)))


def test_a_model_that_follows_is_always_right():
    starts = measured(lambda actions: actions)
    found = obedience.accuracy(starts)
    assert found["accuracy"] == 1 and found["obeys"] and found["sees_actions"] and found["choices"] > 40
    np.testing.assert_allclose(np.diagonal(starts[0].distance), 0)
    np.testing.assert_array_equal(starts[0].imagined, starts[0].replays)


def test_a_model_that_ignores_actions_fails():
    """Whatever it imagines: here always the way to the middle."""
    found = obedience.accuracy(measured(lambda actions: np.full_like(actions, 8.0)))
    assert found["accuracy"] == 0.5 and not found["obeys"] and not found["sees_actions"]
    starts = [2 * sum(obedience.choices(s)) == len(obedience.choices(s)) for s in
              measured(lambda actions: np.full_like(actions, 3.0))]
    assert all(starts)


def test_a_model_that_does_the_opposite_is_wrong_about_it():
    found = obedience.accuracy(measured(lambda actions: 2 * actions[:1] - actions - (actions[1:2] - actions[:1])))
    assert found["accuracy"] < 0.5


def test_chunks_are_of_the_way_from_where_the_robot_stands():
    expert, still = np.array([[2.0, 3.0], [4.0, 3.0]]), np.array([1.0, 3.0])
    chunks = obedience.chunks_of(expert, still, np.array([[0.0, 1.0], [0.0, 2.0]]))
    np.testing.assert_array_equal(chunks, [expert, [[0, 3], [-2, 3]], [[3, 3], [7, 3]], [[1, 4], [1, 5]]])


def test_replays_that_look_alike_are_no_choices():
    starts = measured(lambda actions: actions)
    alike = obedience.dataclasses.replace(starts[0], replays=starts[0].replays[:1].repeat(4, 0))
    assert obedience.choices(alike) == []
    with pytest.raises(ValueError, match="no two replays differ by 2.0 grey levels"):
        obedience.accuracy([alike])
    assert obedience.accuracy([alike, *starts])["starts_without"] == 1


@pytest.mark.parametrize("changes, sentence", [({"imagines_video": False}, "imagines no video"),
                                               ({"last_block": 1}, "windows are one block long"),
                                               ({"block_frames": 3}, "shows 2 frames, a block has 3")])
def test_models_that_cannot_be_asked(changes, sentence):
    engine = Engine(lambda actions: actions)
    vars(engine).update(changes)
    with pytest.raises(ValueError, match=sentence):
        list(obedience.measure(engine, "push", fresh, range(2)))


def test_the_command_measures_a_checkpoint(tmp_path):
    """A tiny one that has learnt nothing: its numbers are finite, and its picture has every chunk in it."""
    restored = make_engine(tmp_path, "pusht", sessions=1, batch_sizes=(1,)).model
    simulation = Simulation.open(restored, None, 1, 1, forward=True)
    result, starts = imagine.evaluate(simulation, range(2000, 2002), lambda line: None)
    json.dumps(result, allow_nan=False)
    assert result["starts"] == 2 and np.isfinite([s.distance for s in starts]).all()
    image = Image.open(io.BytesIO(imagine.picture(imagine.chunk_rows(starts))))
    assert image.size[0] == 4 * (32 + imagine.GAP) * 4 and image.size[1] == 4 * (32 + imagine.GAP) * 4
    assert "chance is 50%" in imagine.describe(result)
