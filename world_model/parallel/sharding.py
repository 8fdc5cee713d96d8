"""Shardings of every array, from one table of logical axes to mesh axes.

The mesh has four axes: `data` (replicas), `fsdp` (weight shards, also batch shards), `tensor` (attention heads and MLP
columns) and `context` (sequence). A family names the logical axes of its parameters, and the model those of its
activations (`constrain`). In a training step `data` and `fsdp` are manual: each device works on its rows, gathers
weights where it uses them and scatters their gradients (`gather_weight`). XLA's partitioner (axis type Auto) does the
rest.
"""

import itertools
import math
from collections.abc import Callable

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from world_model.parallel import gather

AXES = ("data", "fsdp", "tensor", "context")

# Logical axis -> mesh axes. `batch`, `tokens` and `attention_heads` belong to activations, the others to parameters.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
    "embed": ("fsdp",),  # the residual width D of a weight
    "heads": ("tensor",),  # columns of q, k, v; rows of o
    "attention_heads": ("tensor", "context"),  # inside self-attention: all tokens, some heads (all-to-all)
    "mlp": ("tensor",),  # hidden columns of the MLP
    "layers": (),  # the scanned axis: every iteration slices it, so it is never split
    "matrices": ("fsdp",),  # layers of a moment, while an optimizer turns each as a whole (training/directions.py)
    "time": (),  # the 6 D columns of the time projection: they are added to a residual that is not split over D
}

# A weight of so many elements (4 MiB in float32) may stay whole where D does not divide by fsdp; a larger one is an
# error.
SMALL = 2**20


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, context: int = 1, devices=None) -> Mesh:
    """Makes the (data, fsdp, tensor, context) mesh over `devices` (default: all).

    One axis may be -1 and takes the remaining devices. Several slices stand along `data`, so that only the gradients
    summed over `data` cross the data-centre network. Raises ValueError where the axes do not multiply to the devices,
    naming the nearest mesh that does.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _fill([data, fsdp, tensor, context], len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise ValueError(f"mesh.data = {sizes[0]} over {slices} slices: only `data` crosses between slices; "
                         f"nearest: {max(1, round(sizes[0] / slices)) * slices}")
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _fill(sizes: list[int], count: int) -> tuple[int, ...]:
    """Replaces a -1 among the asked sizes. Raises ValueError where they do not multiply to `count`."""
    free = [i for i, size in enumerate(sizes) if size == -1]
    asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes))
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {asked}: sizes are positive, and at most one is -1 (all remaining devices)")
    product = math.prod(size for size in sizes if size != -1)
    if free and count % product == 0:
        sizes[free[0]] = count // product
    elif free or product != count:
        near = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, _nearest(sizes, count)))
        needs = f"a multiple of {product}" if free else str(product)
        raise ValueError(f"mesh {asked} needs {needs} devices, there are {count}; nearest that works: {near}")
    return tuple(sizes)


def _nearest(sizes: list[int], count: int) -> tuple[int, ...]:
    """Finds the factorisation of `count` that changes the asked sizes least, by ratio; -1 costs nothing."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    whole = [(count // math.prod(rest), *rest) for rest in itertools.product(divisors, repeat=3)
             if count % math.prod(rest) == 0]
    return min(whole, key=lambda found: sum(abs(math.log(f / s)) for f, s in zip(found, sizes) if s != -1))


def check_run(mesh: Mesh, *, global_batch_size: int, accumulation: int, num_heads: int) -> None:
    """Checks that a run fits a mesh.

    Raises ValueError where a microbatch does not divide over the replicas, or heads over `tensor`.
    """
    shards = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    least = accumulation * shards
    if global_batch_size % least:
        raise ValueError(
            f"train.global_batch_size = {global_batch_size} does not divide into train.accumulation = "
            f"{accumulation} microbatches over {shards} batch shards (mesh.data x mesh.fsdp); "
            f"nearest: {max(1, round(global_batch_size / least)) * least}")
    tensor = mesh.shape["tensor"]
    if num_heads % tensor:
        raise ValueError(f"model.num_heads = {num_heads} does not divide by mesh.tensor = {tensor}: a head "
                         f"is never split; nearest: mesh.tensor = {math.gcd(num_heads, tensor)}")


def shardings(axes: dict[str, tuple], shapes: dict[str, tuple], mesh: Mesh) -> dict[str, NamedSharding]:
    """Makes {parameter: NamedSharding} from {parameter: logical axes} and {parameter: shape}.

    Raises ValueError naming the parameter where the two disagree or a dimension does not divide.
    """
    if differing := sorted(axes.keys() ^ shapes.keys()):
        where = "axes but no shape" if differing[0] in axes else "a shape but no axes"
        raise ValueError(f"parameter {differing[0]} has {where}")
    return {name: NamedSharding(mesh, _spec(name, axes[name], shapes[name], mesh)) for name in shapes}


def _spec(name: str, logical: tuple, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Makes the spec of one parameter; see `shardings`."""
    if len(logical) != len(shape):
        raise ValueError(f"parameter {name}: {len(logical)} axes {logical} for shape {shape}")
    entries = []
    for axis, size in zip(logical, shape):
        used = mesh_axes(axis)
        ways = math.prod(mesh.shape[a] for a in used)
        if size % ways:
            if axis != "embed" or math.prod(shape) > SMALL:
                raise ValueError(f"parameter {name} {shape}: its axis {axis!r} of {size} does not divide by "
                                 f"{ways} = mesh axes {' x '.join(used)}")
            used = ()
        entries.append(used or None)
    split = [axis for entry in entries if entry for axis in entry]
    if len(set(split)) != len(split):
        raise ValueError(f"parameter {name}: axes {logical} use a mesh axis twice: {entries}")
    return PartitionSpec(*entries)


def mesh_axes(logical: str | None) -> tuple[str, ...]:
    """Returns the mesh axes of a logical axis; () for None. Raises ValueError on a name outside the table."""
    if logical is not None and logical not in RULES:
        raise ValueError(f"unknown logical axis {logical!r}; there are {sorted(RULES)}")
    return RULES[logical] if logical else ()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an activation to the table's layout; does nothing outside `jax.set_mesh`.

    The compiler pads a dimension that does not divide by its mesh axes (the number of tokens is rarely round).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = [tuple(a for a in mesh_axes(axis) if a not in mesh.manual_axes) or None for axis in logical]
    if mesh.manual_axes and not any(spec):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def on_each_device(fn: Callable, inputs: tuple[tuple, ...], output: tuple) -> Callable:
    """fn over each device's share of its arguments: a kernel that the partitioner cannot split. inputs, output: logical
    axes of the arguments and of the result. Outside `jax.set_mesh` it is fn itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return fn

    def spec(logical: tuple) -> PartitionSpec:
        return PartitionSpec(*(tuple(a for a in mesh_axes(axis) if a not in mesh.manual_axes) or None
                               for axis in logical))

    return jax.shard_map(fn, in_specs=tuple(spec(logical) for logical in inputs), out_specs=spec(output),
                         axis_names=set(mesh.axis_names) - set(mesh.manual_axes), check_vma=False)


def gather_weight(weight: jax.Array, logical: tuple, shape: tuple[int, ...]) -> jax.Array:
    """Gathers a weight over `fsdp` for its product, inside the train step's manual region.

    Elsewhere the partitioner does it. The transpose of the gather is the scatter that sums the weight's gradient over
    devices. weight: this device's share, or the whole where D did not divide; shape: that of the whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.manual_axes:
        return weight
    ways = mesh.shape["fsdp"]
    for axis, name in enumerate(logical):
        if name == "embed" and ways > 1 and weight.shape[axis] * ways == shape[axis]:
            return gather.gather(weight, axis, mesh)
    return weight


def restrict_spec(axes: tuple[str, ...], spec: PartitionSpec) -> PartitionSpec:
    """Returns a spec without all mesh axes but `axes`."""
    kept = [tuple(a for a in ((entry,) if isinstance(entry, str) else entry or ()) if a in axes) for entry in spec]
    return PartitionSpec(*(entry or None for entry in kept))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over (data, fsdp), every other axis whole."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def describe(params: dict) -> str:
    """Formats a table of placed arrays: name, shape, dtype, spec, MiB in all and on one device, and the totals."""
    rows, total, local = [("array", "shape", "dtype", "spec", "MiB", "MiB/device")], 0, 0
    for name, p in sorted(params.items()):
        size = math.prod(p.shape) * p.dtype.itemsize
        share = math.prod(p.sharding.shard_shape(p.shape)) * p.dtype.itemsize
        total, local = total + size, local + share
        spec = ", ".join(e if isinstance(e, str) else "+".join(e or "-") for e in p.sharding.spec)
        rows.append((name, "x".join(map(str, p.shape)), p.dtype.name, spec, _mib(size), _mib(share)))
    count = sum(math.prod(p.shape) for p in params.values())
    rows.append((f"total of {count:,} elements", "", "", "", _mib(total), _mib(local)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _mib(size: int) -> str:
    return f"{size / 2**20:.3f}"
