"""A model as a world: runs whose pictures it imagines, block after block, from a first one on.

Step t of a run has frames[t], states[t], and actions[t], which leads from there. A window that is full begins again at
the last imagined picture.
"""

import numpy as np

from launch.serving.engine import Answer, Engine, ModelError, Request
from launch.simulation.closed_loop import Run


def check(world: Engine) -> None:
    """Raises ValueError where a model can be no world."""
    layout = world.robot.layout
    if not world.imagines_video:
        raise ValueError("the model's family imagines no video: it is no world")
    if world.robot.embodiment.view_layout != "single" or world.robot.augmentation.still.crop < 1:
        raise ValueError("what is imagined is to be seen again, but the robot's cameras are tiled or cropped into one "
                         "picture, of which they cannot be made again")
    if layout.block_frames * layout.frame_stride != world.robot.horizon:
        raise ValueError(f"a block shows {layout.block_frames * layout.frame_stride} steps, the robot's horizon is "
                         f"{world.robot.horizon}: a block without all of its commands cannot be imagined")


def request(world: Engine, run: Run, row: int, block: int, text, key: tuple[int, int], commands: np.ndarray) -> Request:
    """Asks for block 0, 1, ... of a run in session `row`, with commands [k, action dims] that are known of it."""
    length, stride, full = world.robot.horizon, world.robot.layout.frame_stride, world.last_block
    begin, number = block * length, (block if full is None else block % full) + 1
    if number == 1:
        seen, done = run.frames[begin:begin + 1], None
    else:
        seen = run.frames[begin - length + 1:begin + 1][stride - 1::stride]
        done = np.stack(run.actions[begin - length:begin])
    views = {view: np.stack([frame[view] for frame in seen]) for view in seen[0]}
    return Request(row, number, views, run.states[begin], text, key, commands, done=done)


def remember(world: Engine, run: Run, latents: np.ndarray) -> np.ndarray:
    """Appends an imagined block to the run's pictures, one for every step: between two, the coming one. Returns it,
    uint8 [block_frames, H, W, 3]."""
    frames = world.decode(latents)
    view, = run.frames[0]
    run.frames += [{view: frame} for frame in np.repeat(frames, world.robot.layout.frame_stride, axis=0)]
    return frames


def picture(world: Engine, run: Run, step: int = -1) -> np.ndarray:
    """What the model sees of a step, uint8 [H, W, 3]."""
    return world.robot.canvas({view: frame[None] for view, frame in run.frames[step].items()})[0]


def answers(world: Engine, requests: list[Request]) -> list[Answer]:
    """Raises ModelError."""
    found = []
    for answer in world.step(requests):
        if isinstance(answer, ModelError):
            raise answer
        found.append(answer)
    return found
