"""Which rows of a global batch a host loads, and how they become arrays over the mesh."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from world_model.parallel.sharding import RULES, batch_sharding


def host_share(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): which share of the global batch this host loads.

    Hosts that hold the same rows load the same. Raises ValueError where two hosts' rows overlap without being equal,
    because no loader can feed that.
    """
    count = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    held: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((count,)).items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    return share_of(held, jax.process_index())


def share_of(held: dict[int, set[int]], process: int) -> tuple[int, int]:
    """Computes `host_share` for a process from {process: the batch shards that its devices hold}."""
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, shares)) != len(set().union(*shares)) or len({len(share) for share in shares}) != 1:
        raise ValueError(f"hosts hold overlapping or unequal batch shards: {shares}; choose mesh axes so "
                         "that each host holds whole shards, or whole hosts share one")
    return shares.index(tuple(sorted(held[process]))), len(shares)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns this host's rows into global arrays over the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
