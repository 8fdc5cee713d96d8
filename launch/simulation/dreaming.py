"""Episodes that a model imagines from a first picture and a prompt, with the actions that they show.

Block after block, the model imagines video; inverse dynamics says which actions lie between its frames; forward
dynamics, from other noise, imagines what these lead to. Where the two videos are too far apart, the actions do not
explain what is seen: an episode ends before that block. A model whose imagination ignores actions agrees with any
label, so that its agreement says nothing (launch.imagine measures that).

The robot's state is that of its last command: what it would measure is not imagined.
"""

import numpy as np

from data_pipelines.imagined import ImaginedEpisode
from data_pipelines.robots.embodiment import Embodiment
from launch.serving.engine import Engine
from launch.simulation import world
from launch.simulation.closed_loop import Run
from launch.simulation.obedience import apart


def followed(robot: Embodiment) -> list[int]:
    """For each number of the robot's state, the command that it follows. Raises ValueError where one follows none."""
    by_name = {dim.moves: i for i, dim in enumerate(robot.action) if dim.moves}
    if missing := [dim.name for dim in robot.state if dim.name not in by_name]:
        raise ValueError(f"embodiment {robot.name!r}: no command is a target of state {missing[0]!r}, so that what the "
                         "robot would measure in an imagined episode is not known")
    return [by_name[dim.name] for dim in robot.state]


def dream(model: Engine, instruction: str, runs: list[Run], blocks: int) -> None:
    """Goes on with fresh runs from what they see first; `gaps` gets each block's distance between the video and
    what its actions lead to, in grey levels. Raises ModelError."""
    follows, text = followed(model.embodiment), model.tokenize(instruction)
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
            run.states += [command[follows] for command in chunk]


def kept(model: Engine, run: Run, instruction: str, most_apart: float) -> ImaginedEpisode | None:
    """The blocks before the first whose videos are further apart; None where that is the first of all."""
    blocks = next((i for i, x in enumerate(run.gaps) if x > most_apart), len(run.gaps))
    steps = range(blocks * model.robot.horizon)
    if not blocks:
        return None
    return ImaginedEpisode(np.stack([world.picture(model, run, i) for i in steps]), np.float32(run.states[:len(steps)]),
                           np.float32(run.actions[:len(steps)]), instruction)
