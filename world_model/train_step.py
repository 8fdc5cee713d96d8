"""One training step as one plain function of (state, batch)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from world_model.optimizer import Optimizer, update_ema
from world_model.sharding import RULES, batch_sharding
from world_model.state import state_shardings, subset, trained_names


def make_train_step(
    loss_fn: Callable, count_fn: Callable, optimizer: Optimizer, *, accumulation: int = 1,
    ema_decay: float = 0.0, trainable: str = ".*", compute_dtype: str = "float32",
) -> Callable:
    """(state, batch) -> (state, metrics).

    loss_fn(params, batch, key, counts) -> (loss, metrics): float32 scalars, normalised by `counts`, so that
    those of microbatches add up to those of the whole batch. counts = count_fn(batch) is taken of the whole
    batch; key is fold_in(state key, step). Metrics gain loss, grad_norm (before clipping), param_norm and
    learning_rate.
    """

    def train_step(state: dict, batch: dict) -> tuple[dict, dict]:
        trained = subset(state["params"], trained_names(state["params"], trainable))
        # One cast for all microbatches and all layers: what fsdp gathers is of the compute dtype.
        weights = jax.tree.map(lambda p: p.astype(compute_dtype), state["params"])
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        counts = count_fn(batch)

        def loss_of(subset_, microbatch):
            return loss_fn(weights | subset_, microbatch, key, counts)

        (loss, metrics), grads = accumulate(loss_of, subset(weights, trained), batch, accumulation)
        new, opt, info = optimizer.update(grads, state["opt"], trained)
        state = state | {"params": state["params"] | new, "opt": opt, "step": state["step"] + 1}
        if "ema" in state:
            state["ema"] = update_ema(state["ema"], new, ema_decay)
        return state, metrics | info | {"loss": loss, "param_norm": optax.global_norm(trained)}

    return train_step


def accumulate(loss_of: Callable, params: dict, batch: dict, microbatches: int):
    """((loss, metrics), gradients) of loss_of(params, batch), summed in float32 over microbatches by a
    scan."""

    def one(microbatch):
        found, grads = jax.value_and_grad(loss_of, has_aux=True)(params, microbatch)
        return found, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    if microbatches == 1:
        return one(batch)
    stacked = jax.tree.map(lambda x: split(x, microbatches), batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                         jax.eval_shape(one, jax.tree.map(lambda x: x[0], stacked)))
    add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)
    return jax.lax.scan(add, zeros, stacked)[0]


def split(x: jax.Array, microbatches: int) -> jax.Array:
    """[B, ...] -> [microbatches, B / microbatches, ...]. Microbatch i takes rows i, i + microbatches, ...:
    every device keeps the rows it has, where contiguous pieces would all move."""
    x = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(None, RULES["batch"]))


def jit_train_step(train_step: Callable, target: dict) -> Callable:
    """Jitted for the layout of the abstract state `target`; the state passed in is donated (its buffers
    reused).

    Call it under `jax.set_mesh`, with batches placed by `sharding.put_batch`.
    """
    placed = state_shardings(target)
    mesh = target["step"].sharding.mesh
    return jax.jit(train_step, donate_argnums=0, in_shardings=(placed, batch_sharding(mesh)),
                   out_shardings=(placed, NamedSharding(mesh, PartitionSpec())))
