"""The real train step at full width and a few layers, on the accelerators here; prints one JSON line.

    python -m benchmarks.full_width --config=configs/dreamzero_14b.py --config.model.num_layers=2 \
        --config.train.global_batch_size=1 [--config.model.attention=blockwise] [--repeats=20]

Forward, backward and optimizer with donated state, as a run executes them (launch/train_parts.py), on random batches:
all 15,940 tokens of a 14B sample at their width. MFU is model FLOP (visible pairs, no recomputation) over the median
step and the published peak of the device; null where nothing is published of it. What is frozen is not part of the
step.
"""

import json
import os
import statistics
import time

import jax
import numpy as np
from absl import flags

from launch import build, fit, train_parts
from launch import flags as launch_flags
from launch.chips import CHIPS, chip_of
from world_model import state
from world_model.program import Program


def random_batch(shapes: dict) -> dict:
    """Arrays of a batch's shapes: floats normal, numbers and masks 1."""
    rng = np.random.default_rng(0)
    make = lambda s: rng.normal(size=s.shape) if np.issubdtype(s.dtype, np.floating) else np.ones(s.shape)
    return {name: jax.device_put(make(s).astype(s.dtype), s.sharding) for name, s in shapes.items()}


def measure(config, repeats: int) -> dict:
    """The JSON line. Raises ValueError where config and devices do not fit."""
    fit.check_kernel(config)
    config = fit.fit(config, build.model)
    mesh, family = train_parts.make_mesh(config), build.model(config)
    make_state, target = train_parts.make_target(config, family, mesh)
    step = train_parts.make_step(config, build.losses(config, family), target)
    shapes = train_parts.abstract_batch(config, family.spec, mesh)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        compiled = step.lower(target, shapes).compile()
        compile_seconds = time.perf_counter() - began
        current, batch, times = state.init_state(make_state, target), random_batch(shapes), []
        for _ in range(repeats + 2):
            began = time.perf_counter()
            current, metrics = compiled(current, batch)
            jax.block_until_ready((current, metrics))
            times.append(time.perf_counter() - began)
    samples, chip = config.train.global_batch_size, chip_of(jax.devices()[0])
    median = statistics.median(times[2:])
    rate = family.flops_per_sample * samples / median / mesh.size
    return {
        "benchmark": "full_width", "layers": config.model.num_layers, "dim": config.model.dim,
        "tokens": family.spec.tokens_per_frame * family.spec.layout.latent_frames, "batch": samples,
        "attention": config.model.attention, "remat": config.train.remat, "mesh": dict(mesh.shape),
        "parameters": sum(p.size for p in current["params"].values()), "median_seconds": median,
        "best_seconds": min(times[2:]), "samples_per_second": samples / median,
        "tflop_per_second_per_device": rate / 1e12,
        "mfu": None if chip is None else rate * CHIPS[chip].devices / CHIPS[chip].peak_flops,
        "executed_over_model": Program(compiled.as_text()).executed_flops() * mesh.size
        / samples / family.flops_per_sample,
        "temporaries_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30, "compile_seconds": compile_seconds,
        "device": jax.devices()[0].device_kind, "load": os.getloadavg()[0], "jax": jax.__version__}


def main(_) -> None:
    """The command."""
    print(json.dumps(measure(flags.FLAGS.config, flags.FLAGS.repeats)))


if __name__ == "__main__":
    launch_flags.define_config()
    flags.DEFINE_integer("repeats", 20, "timed steps, after two that are not", lower_bound=1)
    flags.mark_flags_as_required(["config"])
    launch_flags.run(main)
