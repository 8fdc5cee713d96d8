"""Acts with a trained model as the policy server does: observations in robot units in, chunks of commands out.

    python examples/serve.py runs/example

Here a recorded, held-out episode stands in for the robot. `python -m launch.serve --checkpoint=runs/example` puts the
same engine behind a WebSocket, and any client of openpi asks it:

    policy = openpi_client.websocket_client_policy.WebsocketClientPolicy("127.0.0.1", 8000)
    policy.infer({"observation/image": image, "observation/state": state})["actions"]
"""

import sys

import numpy as np

from launch.serving.engine import Engine, Request
from launch.serving.servable import choose_robot
from launch.setup.restore import restore


def main(workdir: str) -> None:
    """Asks for two chunks: one from the first frame, one from the frames that followed."""
    restored = restore(workdir)
    robot = choose_robot(restored, None, None)  # the only one that the checkpoint knows
    engine = Engine(restored, robot, sessions=1, batch_sizes=(1,))
    recording = restored.data.heldout_robots[0]
    episode = recording.source[int(recording.episodes[0])]

    stride = robot.layout.frame_stride  # control steps from one frame to the next
    nothing = np.zeros((0, len(robot.embodiment.action)))  # no command is still on its way to the robot
    seen = 0  # control step of the newest frame
    for block in (1, 2):
        steps = [0] if block == 1 else seen + stride * np.arange(1, engine.block_frames + 1)
        seen = int(steps[-1])
        request = Request(session=0, block=block, views=episode.read_frames(np.asarray(steps)),
                          state=episode.state[seen], text=engine.tokenize(episode.instruction), key=(0, block),
                          in_flight=nothing)
        answer, = engine.step([request])
        print(f"chunk {block}, after step {seen}: commands {answer.actions.shape}, the first "
              f"{np.round(answer.actions[0], 1)}; recorded {np.round(episode.action[seen], 1)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
