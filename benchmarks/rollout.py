"""DreamZero's cached inference by part; prints one JSON line.

    python -m benchmarks.rollout [--repeats=10 --steps=16 --guidance=5 --skipping=none --batch=1] [--reference=PATH]
    python -m benchmarks.rollout --config=configs/dreamzero_5b.py --config.model.num_layers=4

Without a config the shape is that of benchmarks/train_step.py: float32, 9 latent frames (1 + 4 blocks of 2) of 24
tokens, text 64 x 4096, image features 257 x 1280. The line has medians in milliseconds of what a chunk takes, for the
first block (1 frame cached) and the last (7 cached). --reference (benchmarks/reference.py) times another
implementation's last block in turn; its shape holds the fields of the spec, batch, compute_dtype, steps and guidance.

encode     encodes the frames of a block to latents (PatchPca)
context    makes keys and values of the cross-attention, once per episode
prefill    writes those latents into the cache
denoise    runs all solver steps of the next block, both branches of the guidance in one batch
decode     decodes the imagined block to frames
"""

import dataclasses
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import reference, train_step
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment
from world_model.encoders import patch_pca
from world_model.families import make_model
from world_model.families.dreamzero import cached


def time_calls(function, *args, repeats: int) -> float:
    """Measures median milliseconds, after a first call that compiles."""
    jax.block_until_ready(function(*args))
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def measure(model, dtype: str, repeats: int, batch: int, path: str = "", **settings) -> dict:
    """Times the parts of a chunk; settings: those of the family's sampler; path: the file of a reference, or "".

    Raises ValueError where that has no step.
    """
    spec, layout, rng = model.spec, model.spec.layout, np.random.default_rng(0)
    theirs = [reference.load_step(path, dataclasses.asdict(spec) | {
        "batch": batch, "compute_dtype": dtype, **settings})] if path else []
    params = jax.jit(lambda key: model.cast(model.init_params(key), dtype))(jax.random.key(0))
    sampler = model.sampler(**settings)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(batch, *shape)).astype(np.float32)

    def both(x: np.ndarray | None) -> jax.Array | None:
        return jnp.concatenate([x, x]) if sampler.guided and x is not None else x

    latent = (spec.latent_height, spec.latent_width, spec.latent_channels)
    text = normal(spec.text_length, spec.text_dim)
    image = normal(spec.image_tokens, spec.image_dim) if spec.image_dim else None
    condition = normal(layout.latent_frames, *latent[:2], latent[2] + 4) if spec.concat_first_frame else None
    context = sampler.context(params, both(text), both(image))
    cache = cached.empty_cache(spec, len(both(text)), jnp.dtype(dtype))
    frames = normal(layout.latent_frames, *latent)

    def prefill(i: int) -> cached.Cache:
        nonlocal cache  # whose memory is used again
        cache = sampler.prefill(params, cache, context, both(sampler.block_frames(frames, i)),
                                both(sampler.block_frames(condition, i)), i)
        return cache

    for i in range(layout.num_blocks):
        prefill(i)
    clips = rng.integers(0, 255, (4, 9, layout.height, layout.width, 3)).astype(np.uint8)
    codec, fitted = patch_pca.PatchPca(spec.latent_channels), patch_pca.fit(clips, spec.latent_channels)
    pixels = normal(9, layout.height, layout.width, 3)
    state = normal(1, spec.state_dim)
    keys, last = jax.random.split(jax.random.key(0), batch), layout.num_blocks

    def denoise(i: int) -> tuple:
        return sampler.denoise(params, cache, context, *sampler.noise(keys, i), state,
                               sampler.block_frames(condition, i), i)

    parts = {"encode": (jax.jit(codec.encode), fitted, pixels),
             "context": (sampler.context, params, both(text), both(image)),
             "prefill": (prefill, last - 1),
             "denoise_first": (denoise, 1), "denoise_last": (denoise, last),
             "decode": (jax.jit(codec.decode), fitted, frames[:, :3])}
    found = {part: round(time_calls(*call, repeats=repeats), 2) for part, call in parts.items()}
    times, *their_times = reference.alternate(repeats, lambda: jax.block_until_ready(denoise(last)), *theirs)
    return {"milliseconds": found, "model_calls": int(denoise(last)[2]),
            "parameters": sum(p.size for p in model.shapes.values()),
            "cached_frames": [1, cached.room_frames(spec)],
            **(reference.compare(times, *their_times) if path else {})}


def main(_) -> None:
    """Runs the command."""
    args = flags.FLAGS
    if args.config is None:
        model, dtype = make_model("dreamzero", layout=train_step.LAYOUT, latent_height=8, latent_width=12,
                                  **train_step.SIZES), "float32"
    else:
        model, dtype = Experiment(args.config).model, args.config.train.compute_dtype
    settings = {name: args[name].value for name in ("steps", "guidance", "solver", "skipping", "batch", "repeats")}
    print(json.dumps({**settings, "compute_dtype": dtype, **measure(model, dtype, path=args.reference, **settings),
                      "device": jax.devices()[0].device_kind, "cores": os.cpu_count(),
                      "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_config()
    flags.DEFINE_integer("repeats", 10, "timed calls, after one that is not")
    flags.DEFINE_integer("batch", 1, "rollouts at once")
    flags.DEFINE_integer("steps", 16, "solver steps")
    flags.DEFINE_float("guidance", 5.0, "of the video")
    flags.DEFINE_string("solver", "unipc", "of both parts")
    flags.DEFINE_string("skipping", "none", "world_model/diffusion/step_skipping.py")
    flags.DEFINE_string("reference", "", "Python file with another implementation's step (benchmarks/reference.py)")
    launch_flags.run(main)
