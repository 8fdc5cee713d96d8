"""Episodes that a model imagines from a first picture and a prompt, with the actions that they show.

Block after block, the model imagines video; inverse dynamics says which actions lie between its frames; forward
dynamics, from other noise, imagines what these lead to. Where the two videos are too far apart, the actions do not
explain what is seen: an episode ends before that block. A model whose imagination ignores actions agrees with any
label, so that its agreement says nothing (launch.imagine measures that).

What the robot would measure is not imagined: its states follow from its commands, as they did in the recordings that
the model learned from, whether commands are targets or differences.
"""

from collections.abc import Callable, Iterable

import numpy as np

from data_pipelines.episode import Episode
from data_pipelines.imagined import ImaginedEpisode
from launch.serving.engine import Engine
from launch.simulation import world
from launch.simulation.closed_loop import Run
from launch.simulation.obedience import apart

RIDGE = 1e-6  # share of the mean variance of a feature

Follow = Callable[[np.ndarray, np.ndarray], np.ndarray]  # state [S], commands [n, A] -> states after each [n, S]


def fit_states(episodes: Iterable[Episode]) -> Follow:
    """How a robot's state follows its commands, in its units, fitted on recordings whose range it does not leave.

    Each change is linear in state, command and their products: a turn changes a cosine by how far it is turned already.
    Raises ValueError where these hold no state.
    """
    steps = [(one.state[:-1], one.action[:-1], one.state[1:]) for one in episodes if one.state is not None]
    if not steps:
        raise ValueError("the recordings that the model learned from hold no state of the robot: what it would measure "
                         "in an imagined episode is not known")
    before, command, after = (np.concatenate(part).astype(np.float64) for part in zip(*steps, strict=True))
    (state_mean, state_std), (mean, std) = ((x.mean(0), x.std(0) + 1e-9) for x in (before, command))

    def features(state: np.ndarray, command: np.ndarray) -> np.ndarray:
        s, a = (state - state_mean) / state_std, (command - mean) / std
        return np.concatenate([np.ones((len(s), 1)), s, a, (s[:, :, None] * a[:, None]).reshape(len(s), -1)], axis=1)

    x = features(before, command)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (after - before))
    low, high = before.min(0), before.max(0)

    def follow(state: np.ndarray, commands: np.ndarray) -> np.ndarray:
        states = [np.asarray(state, np.float64)]
        for command in commands:
            change = features(states[-1][None], np.asarray(command, np.float64)[None]) @ weights
            states.append(np.clip(states[-1] + change[0], low, high))
        return np.stack(states[1:])

    return follow


def dream(model: Engine, instruction: str, runs: list[Run], blocks: int, follow: Follow) -> None:
    """Goes on with fresh runs from what they see first; `gaps` gets each block's distance between the video and
    what its actions lead to, in grey levels. Raises ModelError."""
    text = model.tokenize(instruction)
    nothing = np.zeros((0, len(model.embodiment.action)))
    for run in runs:
        run.look()
    for block in range(blocks):
        requests = [world.request(model, run, row, block, text, (run.seed, block), nothing)
                    for row, run in enumerate(runs)]
        imagined = world.answers(model, requests)
        chunks = model.label(requests)
        told = [asked._replace(in_flight=chunk, key=(run.seed, blocks + block))
                for asked, chunk, run in zip(requests, chunks, runs, strict=True)]
        for run, answer, chunk, led_to in zip(runs, imagined, chunks, model.follow(told), strict=True):
            run.gaps.append(apart(world.remember(model, run, answer.latents), model.decode(led_to)))
            run.actions += list(chunk)
            run.states += list(follow(run.states[-1], chunk))


def kept(model: Engine, run: Run, instruction: str, most_apart: float) -> ImaginedEpisode | None:
    """The blocks before the first whose videos are further apart; None where that is the first of all."""
    blocks = next((i for i, x in enumerate(run.gaps) if x > most_apart), len(run.gaps))
    steps = range(blocks * model.robot.horizon)
    if not blocks:
        return None
    return ImaginedEpisode(np.stack([world.picture(model, run, i) for i in steps]), np.float32(run.states[:len(steps)]),
                           np.float32(run.actions[:len(steps)]), instruction)
