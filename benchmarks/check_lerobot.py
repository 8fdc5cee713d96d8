"""A folder of `launch.export --format=lerobot` in LeRobot's own commands, and its actions beside those of the server.

    python3.12 -m venv DIR
    DIR/bin/pip install -e '.[serve]' plugins/lerobot_policy_wamax 'lerobot[core-scripts,pusht,training]'
    DIR/bin/pip install --no-deps openpi-client==0.1.2
    DIR/bin/python -m benchmarks.check_lerobot --folder=FOLDER --workdir=RUN

FOLDER was exported of RUN, a run on PushT. An episode is played in gym-pusht by LeRobot's `rollout`, with a policy of
its own factory; what it saw goes to `launch.serve --export` and `--checkpoint`, as a client would send it. Another is
played by each of these servers (`--policy.server`), and what was seen there goes to the model in this process. Then
lerobot-eval plays two episodes, and lerobot-train is refused. What came out is in docs/lerobot.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs import make_env, make_env_pre_post_processors
from lerobot.envs.configs import PushtEnv
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from launch.simulation.lerobot import open_episodes

CAMERA = "observation.image"  # of LeRobot's PushT
RENAME = {CAMERA: "observation.images.image"}


def play(folder: Path, steps: int, server: str = "") -> tuple:
    """(the policy, what LeRobot saw, [steps, 2] what it did); server: that runs the model."""
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu", f"--server={server}"])
    config.pretrained_path = folder
    env_config = PushtEnv(episode_length=steps)
    policy = make_policy(config, env_cfg=env_config, rename_map=RENAME)
    own = make_pre_post_processors(config)
    loaded = make_pre_post_processors(
        config, str(folder), preprocessor_overrides={"rename_observations_processor": {"rename_map": RENAME}})
    for made, read, where in zip(own, loaded, ("pre", "post"), strict=True):
        names = [[step["registry_name"] for step in each.get_config()["steps"]] for each in (made, read)]
        assert names[0] == names[1], f"{where}processor: LeRobot would write {names[0]}, and the folder has {names[1]}"
    env = next(iter(make_env(env_config, n_envs=1).values()))[0]
    found = rollout(env, policy, *make_env_pre_post_processors(env_config, config), *loaded, seeds=[0],
                    return_observations=True)
    return policy, {key: x[0].numpy() for key, x in found["observation"].items()}, found["action"][0].numpy()


def serve(option: str, ask) -> dict[str, float]:
    """ask(the port) of `launch.serve option`."""
    command = [sys.executable, "-m", "launch.serve", option, "--port=0", "--image_size=96x96", "--batch_sizes=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = next(line for line in server.stdout if line.startswith("serving on ")).rpartition(":")[2]
            return ask(int(port))
        finally:
            server.terminate()
            server.communicate()


def replayed(policy, seen: dict, steps: int):
    """What asks a client for the chunks of the same episode."""
    stride, horizon = policy.episodes.robot.frame_stride, policy.episodes.execute
    frames = np.rint(seen[CAMERA] * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def ask(port: int) -> np.ndarray:
        client, chunks = WebsocketClientPolicy("127.0.0.1", port), []
        for first in range(0, steps, horizon):
            since = range(first - horizon + stride, first + 1, stride) if first else [0]
            chunks.append(client.infer({
                "observation/image": frames[list(since)], "observation/state": seen["observation.state"][first],
                "session_id": "0", "reset": first == 0})["actions"][:horizon])
        return np.concatenate(chunks)[:steps]

    return ask


def here(folder: Path, seen: dict, flipped: bool = False) -> np.ndarray:
    """[steps, 2]: what the model in this process does where that is seen. flipped: every picture stands on its head; a
    difference between runtimes says something where it is far below what this changes."""
    episodes = open_episodes(folder, "cpu", sessions=1, seed=0, execute=0)
    pictures = seen[CAMERA][:, :, ::-1].copy() if flipped else seen[CAMERA]
    return np.concatenate([episodes.act({RENAME[CAMERA]: picture[None], "observation.state": state[None]}, [""])
                           for picture, state in zip(pictures, seen["observation.state"], strict=True)])


def command(name: str, *args: str) -> subprocess.CompletedProcess:
    """One of LeRobot's commands."""
    return subprocess.run([Path(sys.executable).with_name(name), *args], capture_output=True, text=True)


def largest(difference: np.ndarray) -> float:
    """As a share of the range of PushT's actions."""
    return float(np.abs(difference).max() / 512)


def main() -> None:
    """The command; exits with 1 where an action differs by more than 1e-4 of its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    register_third_party_plugins()
    policy, seen, done = play(args.folder, args.steps)

    def compare(port: int) -> dict[str, float]:
        served, there, asked = play(args.folder, args.steps, server=f"ws://127.0.0.1:{port}")
        served.episodes.policy.close()  # its session is the public client's next
        return {"public client": largest(replayed(policy, seen, len(done))(port) - done),
                "--policy.server": largest(here(args.folder, there)[:len(asked)] - asked)}

    found = {name: serve(option, compare) for name, option in (("server in PyTorch", f"--export={args.folder}"),
                                                               ("server in JAX", f"--checkpoint={args.workdir}"))}
    pictures = largest(here(args.folder, seen, flipped=True)[:len(done)] - done)
    print(json.dumps({"steps": len(done), "difference": found, "other pictures": pictures}), flush=True)
    with tempfile.TemporaryDirectory() as out:
        evaluated = command("lerobot-eval", f"--policy.path={args.folder}", "--policy.device=cpu", "--env.type=pusht",
                            f"--env.episode_length={args.steps}", "--eval.n_episodes=2", "--eval.batch_size=2",
                            "--eval.use_async_envs=false",  # its workers of 0.6.1 do not import gym_pusht
                            f"--rename_map={json.dumps(RENAME)}", f"--output_dir={out}/eval")
        assert not evaluated.returncode, evaluated.stderr
        overall = json.loads(Path(out, "eval/eval_info.json").read_text())["overall"]
        refused = command("lerobot-train", f"--policy.path={args.folder}", "--dataset.repo_id=a/b",
                          "--policy.push_to_hub=false", f"--output_dir={out}/train")
    print(json.dumps({"lerobot-eval": {name: overall[name] for name in ("n_episodes", "avg_sum_reward", "pc_success")},
                      "lerobot-train": refused.stderr.strip().splitlines()[-1]}))
    sys.exit(max(value for each in found.values() for value in each.values()) > 1e-4)


if __name__ == "__main__":
    main()
