"""Speed of forward and backward of the training step at a fixed small shape; prints one JSON line.

    python benchmarks/train_step.py [--repeats=20] [--reference=PATH]

The shape is float32, dim 256, 4 heads, 4 layers, ffn 1024, 9 latent frames (1 + 4 blocks of 2) of 24 tokens, batch 2,
8 actions and 1 state per block, text 64 x 4096, image features 257 x 1280. Every parameter gets a gradient, no input
does.

xla_gflop      XLA's cost analysis of the same program with the loop over layers unrolled, so that it counts in full;
               includes element-wise work
executed_gflop matrix products of the measured program itself, from its text, loop bodies times trip count
minimum_gflop  matrix products that the result depends on; the convention is in world_model/analysis/flops.py

--reference=PATH (benchmarks/reference.py) times another implementation's forward and backward in turn. Its shape holds
the fields of the family's spec, and batch.
"""

import sys
from pathlib import Path

if not __package__:  # as a script it would take this folder's statistics.py for Python's
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import dataclasses
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import reference
from world_model import functional
from world_model.analysis.program import Program
from world_model.batch import Layout
from world_model.families import Model, make_model
from world_model.families.dreamzero.model import ForwardInputs

BATCH = 2
SIZES = dict(dim=256, ffn_dim=1024, num_heads=4, num_layers=4, freq_dim=256, latent_channels=16,
             concat_first_frame=True, text_dim=4096, text_length=64, image_dim=1280, image_tokens=257, action_dim=32,
             state_dim=64, action_hidden_dim=1024)
LAYOUT = Layout(frames=33, height=64, width=96, frames_per_block=2, actions_per_block=8, states_per_block=1)


def make_inputs(spec) -> tuple[ForwardInputs, dict]:
    """Makes random inputs with the masks of the batch contract, and targets."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(BATCH, *shape)).astype(np.float32)

    frames, actions = spec.layout.latent_frames, spec.layout.num_actions
    video = (frames, spec.latent_height, spec.latent_width, spec.latent_channels)
    inputs = ForwardInputs(
        noisy_latents=normal(*video), video_timestep=1000 * rng.random((BATCH, frames), np.float32),
        text=normal(spec.text_length, spec.text_dim), clean_latents=normal(*video),
        condition=normal(*video[:-1], 4 + spec.latent_channels), image=normal(spec.image_tokens, spec.image_dim),
        noisy_actions=normal(actions, spec.action_dim), action_timestep=1000 * rng.random((BATCH, actions), np.float32),
        state=normal(spec.layout.num_states, spec.state_dim), frame_valid=np.ones((BATCH, frames), bool),
        action_valid=np.ones((BATCH, actions), bool))
    return inputs, {"video": normal(*video), "action": normal(actions, spec.action_dim)}


def loss_of(model: Model):
    """Makes the loss: the mean square error of both velocities."""
    def loss(params, inputs, targets):
        out = functional.bind(model.module, params)(inputs)
        return jnp.square(out.video - targets["video"]).mean() + jnp.square(out.action - targets["action"]).mean()

    return loss


def compile_step(model: Model, arguments):
    """Compiles value and gradient; returns (compiled, seconds to trace and lower, seconds to compile)."""
    began = time.perf_counter()
    lowered = jax.jit(jax.value_and_grad(loss_of(model))).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, traced - began, time.perf_counter() - traced


def unrolled_flops(model: Model, arguments) -> float:
    """Returns XLA's own count for a program whose loops are unrolled, so that they hide nothing."""
    scan = jax.lax.scan
    jax.lax.scan = lambda *args, **kwargs: scan(*args, **{**kwargs, "unroll": True})
    try:
        fresh = Model(model.family, model.spec)  # traces anew
        return compile_step(fresh, arguments)[0].cost_analysis()["flops"]
    finally:
        jax.lax.scan = scan


def measure(repeats: int, path: str = "") -> dict:
    """Measures the step and returns the JSON line.

    path: the file of a reference, or "". Raises ValueError where that has no step.
    """
    model = make_model("dreamzero", layout=LAYOUT, latent_height=8, latent_width=12, **SIZES)
    shape = dataclasses.asdict(model.spec) | {"batch": BATCH}
    theirs = [reference.load_step(path, shape)] if path else []
    inputs, targets = make_inputs(model.spec)
    arguments = jax.device_put((model.init_params(jax.random.key(0)), inputs, targets))
    compiled, trace_seconds, compile_seconds = compile_step(model, arguments)
    times, *their_times = reference.alternate(repeats, lambda: jax.block_until_ready(compiled(*arguments)), *theirs)
    parts = {part: BATCH * count / 1e9 for part, count in model.training_flops.items()}
    minimum = sum(parts.values())
    return {
        "median_seconds": statistics.median(times), "best_seconds": min(times), "repeats": repeats,
        "trace_seconds": trace_seconds, "compile_seconds": compile_seconds,
        "xla_gflop": unrolled_flops(model, arguments) / 1e9,
        "executed_gflop": Program(compiled.as_text()).executed_flops() / 1e9,
        "minimum_gflop": minimum, "minimum_parts_gflop": {part: round(count, 4) for part, count in parts.items()},
        "gflop_per_second": minimum / statistics.median(times),
        "temp_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "jax": jax.__version__, **(reference.compare(times, *their_times) if path else {})}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--reference", default="", help="Python file with another implementation's step")
    args = parser.parse_args()
    try:
        print(json.dumps(measure(args.repeats, args.reference)))
    except ValueError as error:
        sys.exit(f"train_step: {error}")
