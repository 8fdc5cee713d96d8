"""An export of LingBot-VA in the original's own hands: original_run.py runs there, and what it tells is compared here.

Compared are the passes of two chunks over a cache (noisy video, what was seen, noisy actions, what was done), and of
two requests what the policy server makes of pictures, executed actions and the prompt, what it samples from the same
start, and the commands that it answers.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch  # extra: torch

from world_model.families.base import original
from world_model.families.base.export import OriginalRun, normal
from world_model.families.base.golden import channels_first, grouped
from world_model.families.lingbot_va.layout import LingBotVASpec, Modality
from world_model.families.lingbot_va.torch import original_run
from world_model.families.lingbot_va.torch.adapter import CachedTorchLingBotVAAdapter
from world_model.families.lingbot_va.torch.network import load
from world_model.families.lingbot_va.torch.sampler import LingBotVATorchSampler
from world_model.families.wan.spec import PATCH

CHUNKS, TIMESTEP = 2, 555.5
LAYOUTS = {"t_shape": "robotwin_tshape", "side_by_side": "none", "single": "none"}  # as it names them
EXECUTED = 0.9  # share of the normalised range, beyond which we clip and the original does not


def check(directory: Path, checkout: Path, python: str, experiment: Any, robot: Callable[[], Any]) -> OriginalRun:
    """Runs `python` with the original's packages on its checkout. robot: makes a data_pipelines Robot.

    Raises ValueError where the original ends with an error; its last words are told.
    """
    network, spec, settings = load(directory)
    sampler, driven = LingBotVATorchSampler(network, spec, **settings), robot()
    obstacles, asked = tuple(_obstacles(spec, driven)), _inputs(spec, sampler.chunk_frames)
    passes, request = list(asked), {"window": np.array(sampler.window_blocks), "timestep": np.array(TIMESTEP)}
    request |= {} if obstacles else _request(sampler, driven)
    found = original.ask(original_run.__file__, python, checkout, asked | request, str(Path(directory).resolve()))
    alone = dataclasses.replace(sampler, guidance=1.0, action_guidance=1.0)
    session = CachedTorchLingBotVAAdapter(alone, asked["forward/text"])
    expected = {name: _pass(session, name, asked[name]) for name in passes if name != "forward/text"}
    expected |= {} if obstacles else dict(_answers(sampler, driven, request, found))
    entries = {name: (x, _original_value(found, name)) for name, x in expected.items()}
    return OriginalRun(entries, original.unmatched(found),
                       obstacles or original.prompts(driven.prompt(original.INSTRUCTION), found))


def _obstacles(spec: LingBotVASpec, robot) -> Iterator[str]:
    """Sentences on why its server cannot be asked about this model and robot."""
    known, n = robot.embodiment, spec.actions_per_frame
    view = known.view_layout
    rows = spec.layout.height // original_run.STRIDE, spec.layout.width // original_run.STRIDE
    if (spec.latent_channels, spec.latent_height, spec.latent_width) != (original_run.CHANNELS, *rows):
        yield (f"no request is compared: its server makes noise of {original_run.CHANNELS} channels at a "
               f"{original_run.STRIDE}th of the pictures' size; this model has {spec.latent_channels}")
    elif view not in LAYOUTS or known.state or robot.horizon != n or known.per_step:
        yield (f"no request is compared: its server lays views as {sorted(LAYOUTS)}, knows no state, executes all "
               f"{n} actions of a frame and has the same statistics for each; {known.name!r} has {view!r}, "
               f"{len(known.state)} numbers of state, {robot.horizon} actions and per_step = {known.per_step}")


def _inputs(spec: LingBotVASpec, frames: int) -> dict[str, np.ndarray]:
    """The inputs of the passes in the original's axes: video [1, C, K, h, w], actions [1, A, K, n, 1]."""
    rng, (rows, columns) = np.random.default_rng(0), spec.grid

    found = {"forward/text": normal(rng, spec.text_length, spec.text_dim)}
    for chunk in range(CHUNKS):
        for name in (f"forward/video{chunk}", f"forward/video{chunk}_real"):
            found[name] = normal(rng, spec.latent_channels, frames, PATCH * rows, PATCH * columns)
        for name in (f"forward/action{chunk}", f"forward/action{chunk}_real"):
            found[name] = normal(rng, spec.action_dim, frames, spec.actions_per_frame, 1)
    return found


def _pass(session: CachedTorchLingBotVAAdapter, name: str, x: np.ndarray) -> np.ndarray:
    """Our velocity of one pass, in the shape of the original's."""
    write = name.endswith("_real")
    time = np.full((1, x.shape[2]), 0 if write else TIMESTEP, np.float32)
    chunk = int(name.removesuffix("_real")[-1])
    if "video" in name:
        return channels_first(session.run(np.moveaxis(x, 1, -1), time, chunk, modality=Modality.VIDEO, write=write))
    return session.run(_rows(x), time, chunk, modality=Modality.ACTION, write=write)


def _request(sampler: LingBotVATorchSampler, robot) -> dict[str, np.ndarray]:
    """How its server is configured, and what a client says: pictures [frames, H, W, 3] by view, of the first moment and
    of the chunk that follows; actions as executed [dims, K, n]."""
    rng, spec, known = np.random.default_rng(1), sampler.spec, robot.embodiment
    slots, scale, layout, count = known.action_slots.tolist(), robot.scale("action"), spec.layout, len(known.views)
    tall, unused = known.view_layout == "t_shape", [len(slots)] * spec.action_dim
    height, width = (layout.height * 2 // 3, layout.width) if tall else (layout.height, layout.width // count)
    quantiles = np.zeros((2, spec.action_dim))
    quantiles[:, slots] = scale.low, scale.low + scale.span
    config = {
        "env_type": LAYOUTS[known.view_layout], "obs_cam_keys": list(known.views), "height": height, "width": width,
        "text_dim": spec.text_dim, "action_dim": spec.action_dim, "action_per_frame": spec.actions_per_frame,
        "frame_chunk_size": sampler.chunk_frames, "attn_window": sampler.window_blocks,
        "guidance_scale": sampler.guidance, "action_guidance_scale": sampler.action_guidance,
        "snr_shift": sampler.shift, "action_snr_shift": sampler.action_shift, "num_inference_steps": sampler.steps,
        "action_num_inference_steps": sampler.action_steps, "video_exec_step": sampler.executed_steps or -1,
        "used_action_channel_ids": slots, "norm_stat": dict(zip(("q01", "q99"), quantiles.tolist())),
        "inverse_used_action_channel_ids": [slots.index(i) if i in slots else unused[i]
                                            for i in range(spec.action_dim)]}
    shares = rng.uniform(-EXECUTED, EXECUTED, (sampler.chunk_frames, spec.actions_per_frame, len(slots)))
    shares[0] = 0  # stands for the first frame
    executed = np.moveaxis(scale.denormalise(shares), -1, 0).astype(np.float32)
    moments = 1 + 4 * (sampler.chunk_frames - 1)
    coarse = rng.integers(0, 256, (count, moments, -(-height // 20), -(-width // 20), 3), np.uint8)
    smooth = coarse.repeat(20, 2).repeat(20, 3)[:, :, :height * 15 // 16, :width]
    return {"config": np.array(json.dumps(config)), "prompt": np.array(original.INSTRUCTION), "executed": executed,
            **{f"pictures/{view}": x for view, x in zip(known.views, smooth, strict=True)}}


def _answers(sampler: LingBotVATorchSampler, robot, request: Mapping, found: Mapping
             ) -> Iterator[tuple[str, np.ndarray]]:
    """Our results of both requests."""
    def last(name):
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(found[name], 1, -1)))

    def text(name):
        return torch.from_numpy(found[name]) if name in found else None

    spec, n, none = sampler.spec, sampler.spec.actions_per_frame, np.zeros(0)
    episode = sampler.start(text("request0/text/0"), text("request0/text/1"))
    mask = torch.from_numpy(np.isin(np.arange(spec.action_dim), robot.embodiment.action_slots))[None]
    for i in range(2):
        at = f"request{i}"
        noise = last(f"{at}/noise_video"), last(f"{at}/noise_actions").reshape(1, -1, spec.action_dim)
        latents, actions = sampler.predict(episode, *noise, last("request0/seen")[:, :1] if i == 0 else None, mask)
        yield f"{at}/video", channels_first(latents.numpy())
        yield f"{at}/actions", grouped(actions.numpy(), n)
        yield f"{at}/commands", robot.commands(_rows(found[f"{at}/actions"])[0], none)
        if i == 0:
            yield f"{at}/canvas", robot.canvas({view: request[f"pictures/{view}"] for view in robot.embodiment.views})
            done = robot.predicted(request["executed"].reshape(len(request["executed"]), -1).T, none, spec.action_dim)
            yield f"{at}/done", grouped(done[None], n)
            sampler.observe(episode, last(f"{at}/seen"), torch.from_numpy(done)[None])
            episode = episode.next(sampler.chunk_frames)


def _original_value(found: Mapping, name: str) -> np.ndarray:
    """The original's value of an entry; commands [dims, K, n] as rows."""
    x = found[name]
    return x.reshape(len(x), -1).T if name.endswith("/commands") else x


def _rows(actions: np.ndarray) -> np.ndarray:
    """[B, A, F, n, 1] -> [B, F n, A]."""
    return np.moveaxis(actions[..., 0], 1, -1).reshape(len(actions), -1, actions.shape[1])
