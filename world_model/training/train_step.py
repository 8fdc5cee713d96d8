"""One training step as one plain function of (state, batch)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from world_model.parallel import sharding
from world_model.parallel.sharding import RULES, batch_sharding
from world_model.training.optimizer import Optimizer, ema_decay_at, update_ema
from world_model.training.state import state_shardings, subset, trained_names

# On a torus of three dimensions XLA turns a gather into an all-reduce of padded slices, twice the bytes; the
# second option forbids it. The others let gathers and scatters run beside the products.
COMPILER_OPTIONS = {"tpu": {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_prefer_async_allgather_to_allreduce": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}}
if jax.__version_info__ < (0, 11):  # the compiler of jax 0.11, libtpu 0.0.48.1, refuses these three
    COMPILER_OPTIONS["tpu"] |= {
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    }
# KiB of vector memory that a fusion may take, by `device_kind`. With libtpu's own limit the 14B's products reach 61% of
# a v6e's peak by the compiler's estimate, with this 85% (docs/plans.md).
VECTOR_MEMORY = "xla_tpu_scoped_vmem_limit_kib"
VECTOR_MEMORY_KIB = {"TPU v6 lite": 98_304}
# libtpu 0.0.42.1 fails with an internal error ("iteration-smem-mask-address-key") where a gather takes several steps
# beside products in a program with ragged products.
FAILING_WITH_EXPERTS = "xla_tpu_enable_async_collective_fusion_multiple_steps"


def make_train_step(
    loss_fn: Callable, count_fn: Callable, optimizer: Optimizer, *, accumulation: int = 1,
    ema_decay: float = 0.0, trainable: str = ".*", cast: Callable = lambda params: params,
    after_step: Callable = lambda params, metrics: (params, metrics),
    specs: dict[str, PartitionSpec] | None = None, frozen_specs: tuple[dict, ...] = (),
) -> Callable:
    """Makes the function (state, batch, *frozen) -> (state, metrics).

    loss_fn(params, batch, key, counts, *frozen) -> (loss, metrics) gets one device's rows of a microbatch. Where the
    spec of a parameter in `specs` names fsdp, it gets this device's share, for `sharding.gather_weight`. Its results
    are float32 scalars divided by `counts` = count_fn(whole batch), so that those of microbatches and devices add up to
    those of the whole batch. cast(params) gives the parameters as they are computed with. after_step(trained params,
    metrics) may change both after the optimizer, and leaves no arrays among the metrics (`Loss.after_step`). key is
    fold_in(state key, step). Metrics gain loss, grad_norm (before clipping), param_norm and learning_rate. frozen: at
    most one tree of arrays that are neither trained nor saved, the encoders'; frozen_specs holds its specs, as `specs`
    holds those of the parameters.
    """

    def train_step(state: dict, batch: dict, *frozen: dict) -> tuple[dict, dict]:
        trained = subset(state["params"], trained_names(state["params"], trainable))
        # One cast serves all microbatches and all layers, and fsdp then gathers the compute dtype.
        weights = cast(state["params"])
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        counts = count_fn(batch)

        (loss, metrics), grads = gradients(loss_fn, weights, set(trained), batch, key, counts, accumulation, specs,
                                           frozen, frozen_specs)
        new, opt, info = optimizer.update(grads, state["opt"], trained)
        new, metrics = after_step(new, metrics)
        if "ema" in state:
            state = state | {"ema": update_ema(state["ema"], new, ema_decay_at(ema_decay, state["step"]))}
        state = state | {"params": state["params"] | new, "opt": opt, "step": state["step"] + 1}
        return state, metrics | info | {"loss": loss, "param_norm": optax.global_norm(trained)}

    return train_step


def gradients(loss_fn: Callable, weights: dict, trained: set[str], batch: dict, key, counts: dict,
              accumulation: int = 1, specs: dict[str, PartitionSpec] | None = None,
              frozen: tuple[dict, ...] = (), frozen_specs: tuple[dict, ...] = ()):
    """Returns ((loss, metrics), gradients of `trained`), summed over microbatches and devices.

    `data` and `fsdp` are manual here: each device runs loss_fn on its rows, and what crosses the network is what
    `sharding.gather_weight` and this function say, instead of what the partitioner thinks cheapest.
    """
    def on_rows(weights, batch, key, counts, *frozen):
        def loss_of(chosen, microbatch):
            return loss_fn(weights | chosen, microbatch, key, counts, *frozen)

        return accumulate(loss_of, {name: weights[name] for name in weights if name in trained}, batch, accumulation)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return on_rows(weights, batch, key, counts, *frozen)
    rows = RULES["batch"]
    shares = {name: sharding.restrict_spec(rows, (specs or {}).get(name, PartitionSpec())) for name in weights}
    frozen_shares = jax.tree.map(lambda spec: sharding.restrict_spec(rows, spec), tuple(frozen_specs))

    def unsummed(name: str) -> tuple[str, ...]:
        """Mesh axes over which `sharding.gather_weight` has not summed a parameter's gradient already."""
        return tuple(axis for axis in rows if axis not in jax.tree.leaves(tuple(shares[name])))

    def on_device(*args):
        value, grads = on_rows(*args)
        return jax.lax.psum(value, rows), {name: jax.lax.psum(g, unsummed(name)) for name, g in grads.items()}

    return jax.shard_map(
        on_device, in_specs=(shares, PartitionSpec(rows), PartitionSpec(), PartitionSpec(), *frozen_shares),
        out_specs=(PartitionSpec(), {name: shares[name] for name in weights if name in trained}),
        axis_names=set(rows), check_vma=False)(weights, batch, key, counts, *frozen)


def by_row(fn: Callable, weights: dict, rows, specs: dict[str, PartitionSpec]):
    """Returns fn(weights, row) of every row of a tree of [B, ...], one after the other on the device that has it.

    row: the tree with an axis of one row. The results, a tree of arrays, have B in front. specs: of the weights, as
    `make_train_step` takes them.
    """
    def on_device(weights, rows):
        return jax.lax.map(lambda row: fn(weights, jax.tree.map(lambda x: x[None], row)), rows)

    if jax.sharding.get_abstract_mesh().empty:
        return on_device(weights, rows)
    axes = RULES["batch"]
    shares = {name: sharding.restrict_spec(axes, specs[name]) for name in weights}
    return jax.shard_map(on_device, in_specs=(shares, PartitionSpec(axes)), out_specs=PartitionSpec(axes),
                         axis_names=set(axes), check_vma=False)(weights, rows)


def accumulate(loss_of: Callable, params: dict, batch: dict, microbatches: int):
    """Returns ((loss, metrics), gradients) of loss_of(params, batch), summed in float32 over microbatches by a scan."""

    def one(microbatch):
        found, grads = jax.value_and_grad(loss_of, has_aux=True)(params, microbatch)
        return found, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    if microbatches == 1:
        return one(batch)
    stacked = jax.tree.map(lambda x: split(x, microbatches), batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                         jax.eval_shape(one, jax.tree.map(lambda x: x[0], stacked)))

    def add(total, part):
        return jax.tree.map(jnp.add, total, one(part)), None

    return jax.lax.scan(add, zeros, stacked)[0]


def split(x: jax.Array, microbatches: int) -> jax.Array:
    """Splits [B, ...] into [microbatches, B / microbatches, ...].

    Microbatch i takes rows i, i + microbatches, ...: the same ones on any number of devices.
    """
    return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)


def jit_train_step(train_step: Callable, target: dict, *frozen: dict) -> Callable:
    """Jits a train step for the layout of the abstract state `target` and of the placed or abstract `frozen`.

    The state that it is called with is donated (its buffers are reused). Call it under `jax.set_mesh`, with batches
    placed by `host_rows.put_batch`.
    """
    placed = state_shardings(target)
    mesh = target["step"].sharding.mesh
    return jax.jit(train_step, donate_argnums=0,
                   in_shardings=(placed, batch_sharding(mesh), *map(state_shardings, frozen)),
                   out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
                   compiler_options=compiler_options(mesh.devices.flat[0], target["params"]))


def compiler_options(device: jax.Device, params: dict) -> dict[str, str]:
    """The options for a step on such devices that trains or holds parameters of these names."""
    options = dict(COMPILER_OPTIONS.get(device.platform, {}))
    if device.device_kind in VECTOR_MEMORY_KIB:
        options[VECTOR_MEMORY] = str(VECTOR_MEMORY_KIB[device.device_kind])
    if FAILING_WITH_EXPERTS in options and any(".experts_" in name for name in params):
        options[FAILING_WITH_EXPERTS] = "false"  # left out it would be true
    return options
