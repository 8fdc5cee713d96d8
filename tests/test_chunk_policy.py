"""A sampler that imagines under the asynchronous controller: what is answered, what is grounded, what stays imagined."""

import numpy as np
import pytest

from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from launch.simulation import asynchronous, closed_loop
from launch.simulation.asynchronous import Mode
from launch.simulation.chunk_policy import ChunkPolicy
from launch.simulation.closed_loop import Run
from tests import tiny_policy

N = 4  # control steps of a latent frame


class Table:
    """A robot that goes where it is told, in front of a picture that shows it; 14 steps."""

    def __init__(self, seed):
        self.at, self.steps, self.solved, self.coverage = np.array([200.0 + seed, 300.0]), 0, False, [0.0]

    def views(self):
        image = np.zeros((32, 32, 3), np.uint8)
        image[:, : int(self.at[0]) % 32] = 255
        return {"image": image}

    def state(self):
        return self.at.copy()

    def step(self, action):
        self.at, self.steps = np.array(action, float), self.steps + 1

    def still(self, last=None):
        return self.at if last is None else last

    @property
    def over(self):
        return self.steps >= 14


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    return restore(tiny_policy.write(tmp_path_factory.mktemp("run"), arm="lingbot_va_debug"))


@pytest.fixture(scope="module")
def make(restored, quick_compiles):
    robot = choose_robot(restored, "pusht", None)
    return lambda instruction="push", **options: ChunkPolicy(restored, robot, instruction, **options)


def executed(steps: int, seed: int = 0) -> Run:
    """An episode after so many commands."""
    run, rng = Run(seed, Table(seed)), np.random.default_rng(seed)
    run.look()
    for _ in range(steps):
        run.actions.append(rng.uniform(100, 400, 2))
        run.episode.step(run.actions[-1])
        run.look()
    return run


def answer(policy: ChunkPolicy, in_flight) -> np.ndarray:
    """Five steps in, one frame seen, one executed step of the next chunk."""
    run = executed(N + 1)
    run.in_flight = in_flight
    return policy([run])[0]


@pytest.mark.filterwarnings("ignore:evaluate")
def test_the_answer_is_what_is_on_its_way_and_then_what_it_leads_to(make):
    flight, other = np.full((3, 2), 250.0), np.full((3, 2), 120.0)
    plain = answer(make(), flight)
    assert plain.shape == (3 + N, 2) and np.isfinite(plain).all()
    np.testing.assert_array_equal(plain[:3], flight)
    np.testing.assert_array_equal(answer(make(), flight), plain)
    assert np.abs(answer(make(), other)[3:] - plain[3:]).max() > 1e-3  # told otherwise, it answers otherwise
    naive = [answer(make(grounded=False), x) for x in (flight, other)]
    np.testing.assert_array_equal(naive[0][3:], naive[1][3:])
    assert np.abs(answer(make("stay where you are"), flight)[3:] - plain[3:]).max() > 1e-4  # asked otherwise, too
    short = answer(make(), flight[:1])  # then it holds
    np.testing.assert_array_equal(short, plain)


@pytest.mark.filterwarnings("ignore:evaluate")
@pytest.mark.parametrize("mode", [Mode(2, asynchronous=False), Mode(2, overlap=0), Mode(3, overlap=0, grounded=False)])
def test_episodes_are_driven_to_their_end(make, mode):
    runs, policy = [executed(0, seed) for seed in range(2)], make(grounded=mode.grounded)
    for run in runs:
        run.frames, run.states = [], []
    executors = asynchronous.play(policy, runs, mode, policy.horizon)
    assert all(len(run.actions) == 14 and np.isfinite(run.actions).all() for run in runs)
    assert (len(policy.gaps) > 0) == mode.asynchronous and closed_loop.scores(runs)["episodes"] == 2
    assert asynchronous.smoothness(executors)["held_share"] < 1


def test_episodes_out_of_step_are_refused(make):
    with pytest.raises(ValueError, match="at the same control step"):
        make()([executed(0), executed(1)])
