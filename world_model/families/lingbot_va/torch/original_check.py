"""An export of LingBot-VA in the original's own hands: original_run.py runs there, and what it tells is compared here.

Compared are the passes of two chunks over a cache: noisy video, what was seen, noisy actions, what was done.
"""

from pathlib import Path
from typing import Any

import numpy as np

from world_model.families.base import original
from world_model.families.base.export import Trial
from world_model.families.base.golden import channels_first, grouped
from world_model.families.lingbot_va.layout import LingBotVASpec, Modality
from world_model.families.lingbot_va.torch import original_run
from world_model.families.lingbot_va.torch.adapter import CachedTorchLingBotVAAdapter
from world_model.families.lingbot_va.torch.network import load
from world_model.families.lingbot_va.torch.sampler import LingBotVATorchSampler
from world_model.families.wan.spec import PATCH

CHUNKS, TIMESTEP = 2, 555.5


def check(directory: Path, checkout: Path, python: str, experiment: Any, robot: Any) -> Trial:
    """Runs `python` with the original's packages on its checkout. Raises ValueError where the original ends with an
    error; its last words are told."""
    network, spec, settings = load(directory)
    sampler = LingBotVATorchSampler(network, spec, **settings)
    asked = _inputs(spec, sampler.chunk_frames)
    found = original.ask(original_run.__file__, python, checkout, asked | {
        "window": np.array(sampler.window_blocks), "timestep": np.array(TIMESTEP)}, str(Path(directory).resolve()))
    session = CachedTorchLingBotVAAdapter(sampler, asked["text"])
    entries = {name: (_pass(session, name, x), found[name]) for name, x in asked.items() if name != "text"}
    return Trial(entries, original.left(found))


def _inputs(spec: LingBotVASpec, frames: int) -> dict[str, np.ndarray]:
    """In the original's axes: video [1, C, K, h, w], actions [1, A, K, n, 1]."""
    rng, (rows, columns) = np.random.default_rng(0), spec.grid

    def normal(*shape):
        return rng.normal(size=(1, *shape)).astype(np.float32)

    found = {"text": normal(spec.text_length, spec.text_dim)}
    for chunk in range(CHUNKS):
        for name in (f"video{chunk}", f"video{chunk}_real"):
            found[name] = normal(spec.latent_channels, frames, PATCH * rows, PATCH * columns)
        for name in (f"action{chunk}", f"action{chunk}_real"):
            found[name] = normal(spec.action_dim, frames, spec.actions_per_frame, 1)
    return found


def _pass(session: CachedTorchLingBotVAAdapter, name: str, x: np.ndarray) -> np.ndarray:
    """Ours of one pass, in the shape of the original's answer."""
    write, n = name.endswith("_real"), x.shape[3]
    time = np.full((1, x.shape[2]), 0 if write else TIMESTEP, np.float32)
    chunk = int(name.removesuffix("_real")[-1])
    if name.startswith("video"):
        out = session.run(np.moveaxis(x, 1, -1), time, chunk, modality=Modality.VIDEO, write=write)
        return channels_first(out)
    rows = np.moveaxis(x[..., 0], 1, -1).reshape(1, -1, x.shape[1])
    out = session.run(rows, time, chunk, modality=Modality.ACTION, write=write)
    return np.moveaxis(grouped(out, n)[..., 0], 1, -1).reshape(1, -1, x.shape[1])
