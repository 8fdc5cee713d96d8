"""What a config leaves to the slice: mesh sizes of 0 and `train.remat = "auto"` are chosen for the devices.

The choice is a rule, not a measurement; `launch.plan` says what it comes to, and `--sweep` what else there is.
"""

import functools
import math
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from launch.setup import training
from world_model.analysis.chips import CHIPS, chip_of
from world_model.attention import PLATFORMS, runs_on
from world_model.parallel import sharding
from world_model.parallel.remat import KEPT
from world_model.training import state

FSDP = 64  # weight shards: 5120 / 64 rows fill whole tiles of the TPU's memory; more shards move as many bytes
USABLE_SHARE = 0.92  # for what can be foreseen; plans of the 14B came within 6% of the memory, but for context = 4
# Beside what is kept, as plans of the 14B showed: weights and gradients of layers at work, and D-wide arrays per token.
LAYERS_AT_WORK = 3
WORKING_SET = {"full": 120, "lean": 120, "added": 70, "wide": 90, "dots": 60}
WORKING_SET_ON_TPU = WORKING_SET | {"lean": 40}  # what is live at once decides there: 27 on v6e, 18 on v5e


def fit(config, make: Callable, devices=None) -> ConfigDict:
    """The config with nothing left open. Raises ValueError where no mesh divides the batch.

    make: config -> experiment; devices: those of the whole run, default all.
    """
    devices = jax.devices() if devices is None else devices
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.mesh.update(choose_mesh(config, len(devices)))
        if config.train.remat == "auto":
            experiment = make(config)
            held = jax.eval_shape(functools.partial(training.create_state, experiment, seed=0), experiment.model.shapes)
            config.train.remat = choose_remat(config, devices[0], experiment.model.spec, held)
    return config


def check_kernel(config, devices=None) -> None:
    """Raises ValueError where the attention kernel does not compile for these devices (of a sweep that is only traced
    here they are others), or not in the dtype of the run."""
    kernel, platform = config.model.attention, (devices or jax.devices())[0].platform
    if not runs_on(kernel, platform):
        raise ValueError(f"model.attention = {kernel!r} is a kernel for {PLATFORMS[kernel].upper()}s, and the "
                         f"devices are {platform}s: --config.model.attention=blockwise")
    if kernel == "cudnn" and config.train.compute_dtype != "bfloat16":
        raise ValueError(f"model.attention = 'cudnn' computes in bfloat16, and train.compute_dtype is "
                         f"{config.train.compute_dtype}: --config.train.compute_dtype=bfloat16, or "
                         "--config.model.attention=blockwise")


def choose_mesh(config, devices: int) -> dict[str, int]:
    """Sizes for those that are 0: as little `context` as leaves every batch shard a sample, then `fsdp` up to FSDP."""
    mesh = {axis: config.mesh[axis] for axis in sharding.AXES}
    if 0 not in mesh.values():
        return mesh
    tensor, samples = mesh["tensor"] or 1, config.train.global_batch_size // config.train.accumulation
    rest = devices // tensor
    context = mesh["context"] or next(
        (n for n in range(1, rest + 1) if rest % n == 0 and samples % (rest // n) == 0
         and config.model.num_heads % (tensor * n) == 0), None)
    if context is None or rest % context:
        raise ValueError(f"no mesh divides train.global_batch_size = {config.train.global_batch_size} and "
                         f"model.num_heads = {config.model.num_heads} over {devices} devices; nearest batch: "
                         f"{max(1, round(samples / rest)) * rest}")
    shards = rest // context
    fsdp = mesh["fsdp"] or (shards // mesh["data"] if mesh["data"] > 0 else math.gcd(shards, FSDP))
    return {"data": mesh["data"] or shards // fsdp, "fsdp": fsdp, "tensor": tensor, "context": context}


def choose_remat(config, device: jax.Device, spec, held: dict) -> str:
    """The policy that recomputes least of those whose arrays fit; `products` where the memory is not a chip's. held:
    the abstract state."""
    chip = chip_of(device)
    if chip is None:
        return "products"
    mesh = config.mesh
    rows = config.train.global_batch_size / config.train.accumulation / (mesh.data * mesh.fsdp)
    tokens = rows * spec.training_tokens / mesh.context
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))
    memory = USABLE_SHARE * CHIPS[chip].usable_gib * 2**30 / CHIPS[chip].devices
    room = memory - state_bytes / (mesh.fsdp * mesh.tensor) - _at_work(config, spec, held)
    working_set = WORKING_SET_ON_TPU if device.platform == "tpu" else WORKING_SET
    for policy, (wide, hidden) in reversed(KEPT.items()):
        kept = 2 * rows / mesh.context * spec.kept_values(wide, hidden / mesh.tensor)
        if kept + tokens * 2 * working_set[policy] * spec.dim < room:
            return policy
    return "full"


def _at_work(config, spec, held: dict) -> float:
    """Bytes of computing copies and gradients at once: shards hold those of layers at work, one device alone all."""
    params, mesh, names = held["params"], config.mesh, config.optimizer.trainable
    if mesh.fsdp * mesh.tensor > 1:
        return LAYERS_AT_WORK * 2 * sum(p.size for p in params.values()) / spec.num_layers / mesh.tensor
    copied = sum(2 * p.size for p in params.values() if p.dtype == "float32")
    return copied + sum(2 * params[name].size for name in state.trained_names(params, names))
