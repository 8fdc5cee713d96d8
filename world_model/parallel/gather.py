"""All-gather of weight shards over `fsdp`, in the stages that suit the network between the chips."""

import jax
import numpy as np

# Device kinds whose chips form a torus of three dimensions.
TORUS_3D = ("TPU v4", "TPU v5", "TPU v5p", "TPU7x")


def gather(weight: jax.Array, axis: int, mesh) -> jax.Array:
    """Gathers all shares of a weight over `fsdp`, in as many stages as the network needs."""
    ways = mesh.shape["fsdp"]
    stages = gather_stages(ways, mesh.abstract_device.device_kind)
    devices = np.arange(ways).reshape(stages)
    for stage in reversed(range(len(stages))):
        groups = np.moveaxis(devices, stage, -1).reshape(-1, stages[stage]).tolist()
        weight = jax.lax.all_gather(weight, "fsdp", axis=axis, tiled=True, axis_index_groups=groups)
    return weight


def gather_stages(ways: int, device_kind: str) -> tuple[int, ...]:
    """Returns the size of the groups that exchange in each stage of a gather; the last stage comes first.

    On a torus of three dimensions XLA turns a scatter over all devices into an all-reduce of padded slices, which moves
    twice the bytes. A scatter over a plane and then one over a line stay scatters, and move the bytes of one.
    """
    return (ways // 4, 4) if device_kind in TORUS_3D and ways >= 16 and ways % 4 == 0 else (ways,)
