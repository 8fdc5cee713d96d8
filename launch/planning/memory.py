"""Explanation of an out-of-memory error: what holds the devices' memory, and what to change, cheapest first."""

import contextlib
import math

import jax

from world_model.parallel.remat import POLICIES

SHOWN = 12  # lines of the compiler's own account
LARGEST = 5  # how many arrays of the state are named


class OutOfMemory(RuntimeError):
    """Raised where program or state do not fit into the devices' memory."""


@contextlib.contextmanager
def explained(config, target: dict, mesh):
    """Raises OutOfMemory with `explain`'s text where XLA runs out of memory inside, compiling or running."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(explain(error, config, target, mesh)) from error


def explain(error: Exception, config, target: dict, mesh) -> str:
    """Tells what XLA said, how large the state is per device with its largest arrays, and which settings to try.

    config: the one fitted to the devices (launch/setup/fit.py); target: the abstract state with its shardings.
    """
    held = sorted(((_share(array), jax.tree_util.keystr(path, simple=True, separator="."))
                   for path, array in jax.tree.leaves_with_path(target)), reverse=True)
    largest = "\n".join(f"  {size / 2**20:10.1f} MiB  {name}" for size, name in held[:LARGEST])
    said = [line for line in str(error).splitlines() if line.strip()][:SHOWN]
    return "\n".join([
        "out of memory on the devices. XLA says:", *said,
        f"The state (weights, moments) takes {sum(size for size, _ in held) / 2**30:.2f} GiB per device, most of it:",
        largest, "What takes less memory, cheapest first:", *(f"  {change}" for change in changes(config, mesh)),
        "  python -m launch.plan --config=... --topology=... says what fits before anything is booked"])


def changes(config, mesh) -> list[str]:
    """Lists overrides that take less memory, the cheapest in time first."""
    found, order = [], ["none", *reversed(POLICIES)]
    less = order[order.index(config.train.remat) + 1:]
    if less:
        then = f"; then {', '.join(less[1:])}" if less[1:] else ""
        found.append(f"--config.train.remat={less[0]}  (now {config.train.remat}{then})")
    data, fsdp, context = (mesh.shape[axis] for axis in ("data", "fsdp", "context"))
    rows = config.train.global_batch_size // config.train.accumulation // (data * fsdp)
    if rows > 1:
        found.append(f"--config.train.accumulation={2 * config.train.accumulation}  (now {rows} samples per device)")
    else:
        found.append(f"--config.mesh.context={2 * context}  (a sample's tokens over more devices)")
    if data > 1:
        found.append(f"--config.mesh.data=1 --config.mesh.fsdp={data * fsdp}  (more shards of the weights)")
    if config.optimizer.trainable != ".*" and config.optimizer.get("frozen_dtype") == "float32":
        found.append("--config.optimizer.frozen_dtype=bfloat16  (half of what does not train)")
    if config.optimizer.moments_dtype == "float32":
        found.append("--config.optimizer.moments_dtype=bfloat16  (half of the moments)")
    if config.optimizer.ema_decay > 0:
        found.append("--config.optimizer.ema_decay=0  (no second copy of the weights)")
    if not config.data.cache:
        found.append("--config.data.cache=DIR of launch.precompute  (no encoders on the devices)")
    return found


def _share(array: jax.ShapeDtypeStruct) -> int:
    """Counts an array's bytes on one device."""
    shape = array.shape if array.sharding is None else array.sharding.shard_shape(array.shape)
    return math.prod(shape) * array.dtype.itemsize
