"""Cached inference by part at the small shape of benchmarks/train_step.py; prints one JSON line.

    python -m benchmarks.rollout [--repeats=10 --steps=16 --guidance=5 --skipping=none --batch=1]

The shape is float32, 9 latent frames (1 + 4 blocks of 2) of 24 tokens, text 64 x 4096, image features 257 x 1280. The
line has medians in milliseconds of what a chunk takes, for the first block (1 frame cached) and the last (7 cached).

encode     encodes the frames of a block to latents (PatchPca)
context    makes keys and values of the cross-attention, once per episode
prefill    writes those latents into the cache
denoise    runs all solver steps of the next block, both branches of the guidance in one batch
decode     decodes the imagined block to frames
"""

import argparse
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import train_step
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


def measure(repeats: int, batch: int, **settings) -> dict:
    """Times the parts of a chunk; settings: those of the family's sampler."""
    layout = train_step.LAYOUT
    model = make_model("dreamzero", layout=layout, latent_height=8, latent_width=12, **train_step.SIZES)
    spec, rng = model.spec, np.random.default_rng(0)
    params = jax.jit(model.init_params)(jax.random.key(0))
    sampler = model.sampler(**settings)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(batch, *shape)).astype(np.float32)

    def both(x: np.ndarray) -> jax.Array:
        return jnp.concatenate([x, x]) if sampler.guided else x

    latent = (spec.latent_height, spec.latent_width, spec.latent_channels)
    text, image = normal(spec.text_length, spec.text_dim), normal(spec.image_tokens, spec.image_dim)
    condition = normal(layout.latent_frames, *latent[:2], latent[2] + 4)
    context = sampler.context(params, both(text), both(image))
    cache = cached.empty_cache(spec, len(both(text)))
    frames = normal(layout.latent_frames, *latent)

    def to_prefill(i: int) -> tuple:
        return context, both(sampler.block_frames(frames, i)), both(sampler.block_frames(condition, i)), i

    for i in range(layout.num_blocks):
        cache = sampler.prefill(params, cache, *to_prefill(i))
    clips = rng.integers(0, 255, (4, 9, layout.height, layout.width, 3)).astype(np.uint8)
    codec, fitted = patch_pca.PatchPca(spec.latent_channels), patch_pca.fit(clips, spec.latent_channels)
    pixels = normal(9, layout.height, layout.width, 3)
    state = normal(1, spec.state_dim)
    keys, last = jax.random.split(jax.random.key(0), batch), layout.num_blocks

    def to_denoise(i: int) -> tuple:
        return params, cache, context, *sampler.noise(keys, i), state, sampler.block_frames(condition, i), i

    parts = {"encode": (jax.jit(codec.encode), fitted, pixels),
             "context": (sampler.context, params, both(text), both(image)),
             "prefill": (sampler.prefill, params, cache, *to_prefill(last - 1)),
             "denoise_first": (sampler.denoise, *to_denoise(1)), "denoise_last": (sampler.denoise, *to_denoise(last)),
             "decode": (jax.jit(codec.decode), fitted, frames[:, :3])}
    found = {part: round(time_calls(*call, repeats=repeats), 2) for part, call in parts.items()}
    return {"milliseconds": found, "model_calls": int(sampler.denoise(*to_denoise(last))[2]),
            "parameters": sum(p.size for p in model.shapes.values()),
            "cached_frames": [1, cached.room_frames(spec)]}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--solver", default="unipc")
    parser.add_argument("--skipping", default="none")
    args = vars(parser.parse_args())
    print(json.dumps({**args, **measure(**args), "device": jax.devices()[0].device_kind, "cores": os.cpu_count(),
                      "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
