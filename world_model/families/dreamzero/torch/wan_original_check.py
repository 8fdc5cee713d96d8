"""An export with --format=wan in the original Wan's own hands: wan_original_run.py runs there, and its forward, in
which every token sees every other, is compared with ours of the weights read back."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from world_model import functional
from world_model.families.base import original
from world_model.families.base.export import OriginalRun
from world_model.families.dreamzero.layout import MASK_CHANNELS, DreamZeroSpec
from world_model.families.dreamzero.model import DreamZero, ForwardInputs
from world_model.families.dreamzero.torch import wan_original_run
from world_model.families.dreamzero.weights.formats import IMAGE_BRANCH, IMPORTS
from world_model.weights import conversion

IMAGE_TOKENS, IMAGE_DIM, TIMESTEP = 257, 1280, 555.5


def check(directory: Path, checkout: Path, python: str, experiment: Any) -> OriginalRun:
    """Runs `python` with the original's packages on its checkout. Raises ValueError where the original ends with an
    error; its last words are told."""
    spec, shapes = experiment.model.spec, experiment.model.shapes
    read = conversion.read(IMPORTS["wan"].open(directory), shapes, spec)
    params = {name: x.whole() for name, x in read.items()}
    if not spec.concat_first_frame:  # the 5B's original has no image branch
        spec = dataclasses.replace(spec, image_dim=0)
        params = {name: x for name, x in params.items() if not re.search(IMAGE_BRANCH.pattern, name)}
    asked = _inputs(spec)
    found = original.ask(wan_original_run.__file__, python, checkout, asked, str(Path(directory).resolve()))
    return OriginalRun({"forward/video": (_forward(spec, params, asked), found["video"])}, original.unmatched(found))


def _inputs(spec: DreamZeroSpec) -> dict[str, np.ndarray]:
    """Inputs in the original's axes, [C, F, h, w]. The 5B gets a timestep for each token, and its first frame clean."""
    rng, frames, (rows, columns) = np.random.default_rng(0), spec.layout.latent_frames, spec.grid

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    latent = (frames, 2 * rows, 2 * columns)
    found = {"latents": normal(spec.latent_channels, *latent), "text": normal(spec.text_length, spec.text_dim),
             "image": normal(IMAGE_TOKENS, spec.image_dim or IMAGE_DIM), "timestep": np.array([TIMESTEP], np.float32)}
    if spec.concat_first_frame:
        return found | {"condition": normal(MASK_CHANNELS + spec.latent_channels, *latent)}
    time = np.full((frames, spec.tokens_per_frame), TIMESTEP, np.float32)
    time[0] = 0
    return found | {"timestep": time.reshape(1, -1)}


def _forward(spec: DreamZeroSpec, params: dict, asked: dict[str, np.ndarray]) -> np.ndarray:
    """Our velocity of the video, [C, F, h, w]."""
    time = asked["timestep"].reshape(1, -1)
    inputs = ForwardInputs(
        noisy_latents=np.moveaxis(asked["latents"], 0, -1)[None], text=asked["text"][None],
        video_timestep=np.broadcast_to(time[:, ::spec.tokens_per_frame], (1, spec.layout.latent_frames)),
        condition=np.moveaxis(asked["condition"], 0, -1)[None] if "condition" in asked else None,
        image=asked["image"][None] if spec.image_dim else None)
    network = functional.abstract(DreamZero, spec)
    with jax.default_matmul_precision("highest"):
        out = jax.jit(lambda p, x: functional.bind(network, p)(x, no_clean="bidirectional").video)(params, inputs)
    return np.moveaxis(np.asarray(out)[0], -1, 0)
