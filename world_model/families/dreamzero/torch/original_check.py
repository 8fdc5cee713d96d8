"""An export of DreamZero in the original's own hands: original_run.py runs there, and what it tells is compared here.

Compared are a training forward, and of two requests what the policy makes of pictures, state and prompt, what it
samples from the same start, and the commands that it answers.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch  # extra: torch

from world_model.batch import Layout
from world_model.families.base import original
from world_model.families.base.export import OriginalRun, normal
from world_model.families.dreamzero.layout import MASK_CHANNELS
from world_model.families.dreamzero.torch import loading, original_run, wan_original_check
from world_model.families.dreamzero.torch import runtime as torch_runtime
from world_model.families.dreamzero.torch.adapter import TorchAdapter
from world_model.families.dreamzero.torch.sampler import DreamZeroTorchSampler
from world_model.families.dreamzero.visibility import TABLES
from world_model.families.dreamzero.weights import experiment as published
from world_model.families.dreamzero.weights.formats import IMPORTS
from world_model.weights import safetensors_io

FRAMES = (1, 4)  # frames of a session's first request and of a later one
AS_ITS_POLICY: dict[str, Any] = {"solver": "unipc", "steps": 16, "shift": 5.0, "guidance": 5.0, "action_guidance": 1.0,
                                 "skipping": "8"}


def check(directory: Path, checkout: Path, python: str, experiment: Any, robot: Callable[[], Any]) -> OriginalRun:
    """Runs `python` with the original's packages on its checkout; of an export with --format=wan, the original is Wan.
    robot: makes a data_pipelines Robot.

    Raises ValueError where the original does not know the robot, where the export is not in float32, or where the
    original ends with an error; its last words are told.
    """
    if (directory / safetensors_io.index_name(IMPORTS["wan"].stem)).exists():
        return wan_original_check.check(directory, checkout, python, experiment)
    driven = robot()
    known, ours = published.robot_of(driven.embodiment), loading.read_config(directory)
    if known.tag not in published.SERVED:
        raise ValueError(f"the original serves {', '.join(published.SERVED)}, not {known.tag!r}")
    if ours["dtype"] != "float32":
        raise ValueError(f"{directory} is in {ours['dtype']}, the check computes in float32: export with "
                         "--dtype=float32")
    inputs = _parts(ours) | _observations(known, ours)
    found = original.ask(original_run.__file__, python, checkout, inputs, str(Path(directory).resolve()), known.tag)
    runtime, settings = loading.load(directory)
    runtime.rollout_table = TABLES["dreamzero_state_sees_all"]  # its own, whatever ours is
    expected = dict(_forward(runtime, inputs)) | dict(_requests(runtime, settings, driven, known, inputs, found))
    entries = {name: (x, _original_value(found, known, name)) for name, x in expected.items()}
    return OriginalRun(entries, original.unmatched(found),
                       original.prompts(driven.prompt(original.INSTRUCTION), found))


def _parts(ours: dict) -> dict[str, np.ndarray]:
    """Inputs of the training forward, in the original's axes [B, C, F, h, w]."""
    rng, network, layout = np.random.default_rng(0), ours["network"], Layout(**ours["layout"])
    latent = (layout.latent_frames, *ours["inputs"]["latent_size"])

    def time(count):
        return rng.uniform(0, 1000, size=(1, count)).astype(np.float32)

    channels = network["out_dim"]
    parts = {"noisy_latents": normal(rng, channels, *latent), "clean_latents": normal(rng, channels, *latent),
             "condition": normal(rng, MASK_CHANNELS + channels, *latent), "video_timestep": time(layout.latent_frames),
             "action_timestep": time(layout.num_actions), "state": normal(rng, layout.num_states, network["state_dim"]),
             "noisy_actions": normal(rng, layout.num_actions, network["action_dim"]),
             "text": normal(rng, ours["inputs"]["text_length"], network["text_dim"]),
             "image": normal(rng, original_run.IMAGE_TOKENS, original_run.IMAGE_DIM)}
    return {f"forward/{name}": x for name, x in parts.items()}


def _observations(known: published.ServedRobot, ours: dict) -> dict[str, np.ndarray]:
    """What a client sends, by the original's names."""
    rng, layout = np.random.default_rng(1), ours["layout"]
    width, height = known.resolution or (layout["width"], layout["height"])
    if ours["network"]["out_dim"] == 48:  # its policy resizes to the target first
        width, height = layout["width"], layout["height"]
    found = {}
    for i, frames in enumerate(FRAMES):
        coarse = rng.integers(0, 256, (len(known.views), frames, -(-height // 20), -(-width // 20), 3), np.uint8)
        smooth = coarse.repeat(20, 2).repeat(20, 3)[:, :, :height, :width]
        found |= {f"request{i}/video.{view}": x for view, x in zip(known.views, smooth, strict=True)}
        for key, at in known.keys["state"].items():
            found[f"request{i}/state.{key}"] = rng.uniform(-1, 1, (1, len(at)))
        found[f"request{i}/text"] = np.array(original.INSTRUCTION)
    return found


def _forward(runtime: torch_runtime.Runtime, inputs: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """Our results of the training forward, in the original's axes."""
    parts = {name.removeprefix("forward/"): x for name, x in inputs.items() if name.startswith("forward/")}
    parts = {name: np.moveaxis(x, 1, -1) if x.ndim == 5 else x for name, x in parts.items()}
    network = runtime.model
    if network.patch_embedding.in_channels == network.out_dim:
        parts["condition"] = None
    if not hasattr(network, "img_emb"):
        parts["image"] = None
    out = TorchAdapter(runtime).forward(parts)
    yield "forward/video", np.moveaxis(out.video, -1, 1)
    yield "forward/action", out.action


def _requests(runtime, settings: dict, robot, known, inputs: Mapping, found: Mapping
              ) -> Iterator[tuple[str, np.ndarray]]:
    """Our results of both requests, in one session as the original's policy keeps it."""
    def tensor(x):
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 1, -1) if x.ndim == 5 else x))

    sampler = DreamZeroTorchSampler(runtime, **AS_ITS_POLICY, video_final_sigma=settings.get("video_final_sigma", 0.0))
    first = tensor(found["request0/codec/0"])
    mask = first.new_zeros(*first.shape[:-1], MASK_CHANNELS)
    mask[:, 0] = 1
    joined = runtime.model.patch_embedding.in_channels > runtime.model.out_dim
    condition = torch.cat([mask, first], -1) if joined else None
    image = tensor(found["request0/image"]) if hasattr(runtime.model, "img_emb") else None
    session = sampler.start(tensor(found["request0/text/0"]), image, tensor(found["request0/text/1"]))
    n, seen = runtime.layout.frames_per_block, first[:, :1]
    views = dict(zip(known.views, robot.embodiment.views, strict=True))
    for i in range(len(FRAMES)):
        at = f"request{i}"
        state = np.concatenate([inputs[f"{at}/state.{key}"][0] for key in known.keys["state"]])
        slots = robot.state(state)[None, None].astype(np.float32)
        frames = slice(0, 1) if i == 0 else slice(1 + (i - 1) * n, 1 + i * n)
        sampler.prefill(session, seen, None if condition is None else condition[:, frames])
        ahead = slice(1 + i * n, 1 + (i + 1) * n)
        latents, actions = sampler.denoise(
            session, tensor(found[f"{at}/noise_video"]), tensor(found[f"{at}/noise_actions"]), tensor(slots),
            None if condition is None else condition[:, ahead])
        yield f"{at}/canvas", robot.canvas({ours: inputs[f"{at}/video.{name}"] for name, ours in views.items()})[None]
        yield f"{at}/state", slots
        yield f"{at}/video", np.moveaxis(latents.numpy(), -1, 1)
        yield f"{at}/actions", actions.numpy()
        yield f"{at}/commands", robot.commands(found[f"{at}/actions"][0], state)
        if i + 1 < len(FRAMES):
            seen = tensor(found[f"request{i + 1}/codec/0"])[:, -n:]


def _original_value(found: Mapping, known: published.ServedRobot, name: str) -> np.ndarray:
    """The original's value of an entry."""
    request, _, part = name.partition("/")
    if part == "commands":
        acts = [found[f"{request}/act/action.{key}"] for key in known.keys["action"]]
        return np.concatenate([x.reshape(len(x), -1) for x in acts], 1)
    if part == "video" and request == "request0":
        return found[name][:, :, 1:]  # its first answer begins with the frame that it was given
    return found[name]
