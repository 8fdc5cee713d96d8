"""Speed of the real train step at full width and a few layers, on the accelerators here; prints one JSON line.

    python -m benchmarks.full_width --config=configs/dreamzero_14b.py --config.model.num_layers=2 \
        --config.train.global_batch_size=1 [--config.model.attention=cudnn] [--repeats=20] \
        [--reference=PATH]

It runs forward, backward and optimizer with donated state, as a run does (launch/setup/training.py), on random
batches: all 15,940 tokens of a 14B sample at their width. Frozen encoders are not part of the step. MFU is model FLOP
(visible pairs, no recomputation) over the median step and the published peak of the device; it is null where nothing is
published of the device.

--reference (benchmarks/reference.py) times another implementation's step in turn: forward, backward and optimizer. Its
shape holds the fields of the family's spec (dim, num_layers, layout: frames, height, width, frames_per_block, ...),
batch and compute_dtype.
"""

import dataclasses
import json
import os
import statistics
import sys
import time

import jax
import numpy as np
from absl import flags

from benchmarks import reference
from launch.setup import fit, training
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment
from world_model.analysis.chips import CHIPS, chip_of
from world_model.analysis.program import Program
from world_model.training import state


def random_batch(shapes: dict) -> dict:
    """Makes arrays of a batch's shapes: floats are normal, integers and masks 1."""
    rng = np.random.default_rng(0)

    def make(shape: tuple, dtype) -> np.ndarray:
        return (rng.normal(size=shape) if np.issubdtype(dtype, np.floating) else np.ones(shape)).astype(dtype)

    return {name: jax.device_put(make(s.shape, s.dtype), s.sharding) for name, s in shapes.items()}


def measure(config, repeats: int, path: str = "") -> dict:
    """Measures the step and returns the JSON line; path: the file of a reference, or "".

    Raises ValueError where config and devices do not fit, or the reference has no step.
    """
    fit.check_kernel(config)
    experiment = Experiment(config).fitted()
    config, model = experiment.config, experiment.model
    mesh = training.make_mesh(config)
    shape = dataclasses.asdict(model.spec) | {"batch": config.train.global_batch_size,
                                               "compute_dtype": config.train.compute_dtype}
    theirs = [reference.load_step(path, shape)] if path else []
    make_state, target = training.make_target(experiment, mesh)
    step = training.make_step(experiment, target)
    shapes = training.abstract_batch(experiment, mesh)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        compiled = step.lower(target, shapes).compile()
        compile_seconds = time.perf_counter() - began
        current, batch = state.init_state(make_state, target), random_batch(shapes)

        def ours() -> None:
            nonlocal current
            current, metrics = compiled(current, batch)
            jax.block_until_ready((current, metrics))

        times, *their_times = reference.alternate(repeats, ours, *theirs)
    samples, chip = config.train.global_batch_size, chip_of(jax.devices()[0])
    median = statistics.median(times)
    rate = model.flops_per_sample * samples / median / mesh.size
    return {
        "benchmark": "full_width", "layers": config.model.num_layers, "dim": config.model.dim,
        "tokens": model.spec.tokens_per_frame * model.spec.layout.latent_frames, "batch": samples,
        "attention": config.model.attention, "remat": config.train.remat, "mesh": dict(mesh.shape),
        "parameters": sum(p.size for p in current["params"].values()), "median_seconds": median,
        "best_seconds": min(times), "samples_per_second": samples / median,
        "tflop_per_second_per_device": rate / 1e12,
        "mfu": None if chip is None else rate * CHIPS[chip].devices / CHIPS[chip].peak_flops,
        "executed_over_model": Program(compiled.as_text()).executed_flops() * mesh.size
        / samples / model.flops_per_sample,
        "temporaries_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30, "compile_seconds": compile_seconds,
        "device": jax.devices()[0].device_kind, "load": os.getloadavg()[0], "jax": jax.__version__,
        **(reference.compare(times, *their_times) if path else {})}


def main(_) -> None:
    """Runs the command."""
    try:
        print(json.dumps(measure(flags.FLAGS.config, flags.FLAGS.repeats, flags.FLAGS.reference)))
    except ValueError as error:
        sys.exit(f"full_width: {error}")


if __name__ == "__main__":
    launch_flags.define_config()
    flags.DEFINE_integer("repeats", 20, "timed steps, after two that are not", lower_bound=1)
    flags.DEFINE_string("reference", "", "Python file with another implementation's step (benchmarks/reference.py)")
    flags.mark_flags_as_required(["config"])
    launch_flags.run(main)
