"""launch.imagine --policies: a model that follows commands ranks policies as the simulator does, one that ignores them
ranks none."""

import io
import json
import types

import numpy as np
import pytest
from PIL import Image

from launch import imagine
from launch.serving.engine import Answer
from launch.simulation import candidates, ranking
from launch.simulation.candidates import Candidate, NoisyExpert
from launch.simulation.closed_loop import Run, repeat_last
from launch.simulation.simulators import Simulation
from launch.simulation.world import check
from tests import tiny_policy
from tests.dot_world import SIDE, Dot
from tests.serving import make_engine, without_video
from world_model.training.checkpoint import CheckpointError

STEPS, BLOCKS = 4, 3
STATISTICS = {"action": {"mean": [8.0, 8.0], "std": [4.0, 4.0], "q01": [1.0, 1.0], "q99": [15.0, 15.0]}}


class World(Dot):
    """The dot goes a third of the way to where it is told; its measure is how near it is to the middle."""

    spread = 8.0

    def __init__(self, seed: int):
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
        self.place, self.coverage = 8 + 6 * np.array([np.sin(angle), np.cos(angle)]), []

    def expert(self):
        return np.array([8.0, 8.0])

    def step(self, action):
        self.place = self.place + (np.clip(action, 0, SIDE) - self.place) / 3
        self.coverage.append(float(np.exp(-np.square(self.place - 8).sum() / 8)))

    @property
    def over(self):
        return len(self.coverage) >= BLOCKS * STEPS

    @property
    def solved(self):
        return bool(self.coverage) and self.coverage[-1] > 0.9


def fresh(seeds):
    return [Run(seed, World(seed)) for seed in seeds]


class Engine:
    """Imagines the world as it is told to go on, or `follows` something else; a latent is a picture."""

    imagines_video, last_block, sessions, batch_sizes = True, None, 6, (6,)
    robot = types.SimpleNamespace(horizon=STEPS, statistics=STATISTICS, canvas=lambda views: views["image"],
                                  layout=types.SimpleNamespace(frame_stride=2, block_frames=2))

    def __init__(self, follows):
        self.follows, self.worlds = follows, {}

    def tokenize(self, instruction):
        return np.zeros(1, int), 1

    def decode(self, latents):
        return np.uint8(latents)

    def step(self, requests):
        answers = []
        for request in requests:
            if request.block == 1:
                self.worlds[request.session] = World(0)
                self.worlds[request.session].place = request.state
            frames = []
            for i, action in enumerate(self.follows(request.in_flight)):
                self.worlds[request.session].step(action)
                frames += [self.worlds[request.session].views()["image"]] * (i % 2)
            answers.append(Answer(request.in_flight, None, np.stack(frames), {}))
        return answers


def policies():
    return [*(Candidate(f"expert:{n}", NoisyExpert({"action": {"std": np.full(2, 4.0)}}, n)) for n in (0, 0.5, 1, 2, 4)),
            Candidate("repeat_last", repeat_last)]


def ranked(follows):
    said = []
    tried = ranking.rank(Engine(follows), "go", policies(), fresh, range(6), BLOCKS, said.append)
    assert said == tried
    return tried


def correlation(tried):
    return ranking.correlations([one.score for one in tried], [one.simulated["coverage"] for one in tried])


def test_a_model_that_follows_ranks_as_the_simulator_does():
    tried = ranked(lambda actions: actions)
    found = correlation(tried)
    assert found["spearman"]["value"] > 0.9 and found["spearman"]["interval"][0] > 0 < found["kendall"]["value"]
    for one in tried:
        np.testing.assert_array_equal(one.imagined, one.pictures)
        assert one.score == one.read
    assert tried[0].simulated["successes"] > tried[-1].simulated["successes"] == 0


@pytest.mark.parametrize("goes", [8.0, 3.0])
def test_a_model_that_ignores_actions_ranks_none(goes):
    """Wherever it always goes; the simulator's own pictures still tell the policies apart."""
    tried = ranked(lambda actions: np.full_like(actions, goes))
    assert len({one.score for one in tried}) == 1
    found = correlation(tried)
    assert all(of == {"value": 0.0, "interval": [0.0, 0.0]} for of in found.values())
    truth = [one.simulated["coverage"] for one in tried]
    assert ranking.correlations([one.read for one in tried], truth)["spearman"]["value"] > 0.9
    words = imagine.describe_ranking({"imagined": found, "true_pictures": found, "policies": tried, "measure": "x"})
    assert "spearman +0.00 [+0.00, +0.00]" in words and "not shown to rank them" in words


def test_a_model_that_does_the_opposite_ranks_backwards():
    assert correlation(ranked(lambda actions: np.where(np.abs(actions - 8) > 2, 8.0, 0.0)))["spearman"]["value"] < 0


def test_chance_alone_is_not_shown_to_rank():
    """An order that has nothing to do with the truth."""
    found = ranking.correlations([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8])
    assert found["spearman"]["interval"][0] < 0 < found["spearman"]["interval"][1]


@pytest.mark.parametrize("changes, sentence", [
    ({"view_layout": "t_shape"}, "tiled or cropped"), ({"crop": 0.9}, "tiled or cropped"),
    ({"block_frames": 3}, "a block shows 6 steps, the robot's horizon is 4")])
def test_robots_whose_pictures_cannot_be_shown_again(changes, sentence):
    world = Engine(lambda actions: actions)
    layout = types.SimpleNamespace(frame_stride=2, block_frames=changes.get("block_frames", 2))
    world.robot = types.SimpleNamespace(
        horizon=STEPS, layout=layout, embodiment=types.SimpleNamespace(view_layout=changes.get("view_layout", "single")),
        augmentation=types.SimpleNamespace(still=types.SimpleNamespace(crop=changes.get("crop", 1.0))))
    with pytest.raises(ValueError, match=sentence):
        check(world)


NOISES = [f"expert:{noise}" for noise in (0, 1, 2, 4, 8)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("run"), "pusht", sessions=2, batch_sizes=(2,))


@pytest.mark.parametrize("names, sentence", [
    (["expert", "random", "mean"], "found 3, an order of fewer than 8"),
    ([*NOISES, "mean", "mean", "random"], "'mean' stands twice"),
    ([*NOISES, "mean", "random", "exprt"], "'exprt': there are expert, expert:NOISE"),
    ([*NOISES, "mean", "random", "expert:loud"], "'expert:loud': expected expert:NOISE, a number"),
    ([*NOISES, "mean", "random", "somewhere@new"], "'somewhere@new': there are expert")])
def test_names_that_mean_no_policy(names, sentence, engine):
    with pytest.raises(ValueError, match=sentence):
        candidates.make(names, engine, "go")


def test_checkpoints_that_are_not_there_or_answer_too_few_commands(engine, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        candidates.make([*NOISES, "mean", "random", f"{tmp_path}/nowhere@3"], engine, "go")
    config = tiny_policy.config()
    config.layout.update(frames=5, frames_per_block=1, actions_per_block=2)
    short = tiny_policy.write_config(tmp_path, config, "pusht")
    with pytest.raises(ValueError, match="answers 2 commands at a time, a block of the world has 4"):
        candidates.make([*NOISES, "mean", "random", f"{short}@1"], engine, "go")


def test_a_family_without_video_is_no_world(engine):
    with without_video(engine), pytest.raises(ValueError, match="imagines no video"):
        check(engine)


def test_the_command_ranks_in_a_checkpoint(engine):
    """A tiny one that has learnt nothing, which is a policy as well: its numbers are finite, and every policy stands in
    the table and in the picture."""
    names, lines = [*NOISES, "random", "repeat_last", f"{engine.model.workdir}@1"], []
    simulation = Simulation.open(engine.model, None, 2, 2, forward=True)
    result, tried = imagine.rank(simulation, names, range(2000, 2002), 3, lines.append)
    json.dumps(result, allow_nan=False)
    assert list(result["policies"]) == names and len(lines) == 8 and "/2 solved, best coverage" in lines[0]
    assert "8 policies: spearman" in imagine.describe_ranking(result)
    assert tried[0].imagined.shape == (2, 3, 32, 32, 3)
    assert any((one.imagined != tried[0].imagined).any() for one in tried)  # its noisy actions are beside the video
    assert Image.open(io.BytesIO(imagine.picture(imagine.policy_rows(tried)))).size[0] == 8 * (32 + imagine.GAP) * 4
