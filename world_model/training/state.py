"""The training state: one plain dict pytree with flat stable names.

    params {name: float32}        every parameter; frozen ones in bfloat16 where that is asked for
    opt    {count, mu, ...}       moments of the trained parameters alone (world_model/training/optimizer.py)
    ema    {name: float32}        average of the trained parameters; only where averaging is on
    step   int32                  optimizer steps done
    key    uint32 key data        root of all randomness; it never advances, each step folds in its number
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from world_model.training.optimizer import Optimizer, matching


def trained_names(names: Iterable[str], pattern: str) -> tuple[str, ...]:
    """Selects the parameters whose name matches the regular expression. Raises ValueError where none does."""
    return matching("optimizer.trainable", pattern, names)


def subset(params: dict, names: Iterable[str]) -> dict:
    """Selects the named entries of a flat dict."""
    return {name: params[name] for name in names}


def create(
    params: dict, optimizer: Optimizer, *, seed: int | jax.Array, trainable: str = ".*", ema: bool = False,
    frozen: Callable[[dict], dict] = lambda params: params,
) -> dict:
    """Makes the state of step 0 around given parameters. The average starts from them, never from zero.

    frozen: gives those that do not train as they are kept.
    """
    trained = subset(params, trained_names(params, trainable))
    state = {
        "params": frozen(params) | trained,
        "opt": optimizer.init(trained),
        "step": jnp.zeros((), jnp.int32),
        "key": jax.random.key_data(jax.random.key(seed)),
    }
    return state | {"ema": jax.tree.map(jnp.copy, trained)} if ema else state


def abstract_state(make: Callable[[], dict], param_shardings: dict[str, NamedSharding]) -> dict:
    """Returns shapes, dtypes and shardings of what `make` would return: the target of `init_state` and of a restore.

    A moment or an average of its parameter's shape lies where that lies; rows' and columns' moments, scalars and the
    key are on every device.
    """
    everywhere = NamedSharding(next(iter(param_shardings.values())).mesh, PartitionSpec())
    found = jax.eval_shape(make)
    shapes = {name: p.shape for name, p in found["params"].items()}

    def place(path, leaf):
        own = shapes.get(path[-1].key) == leaf.shape
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                    sharding=param_shardings[path[-1].key] if own else everywhere)

    return jax.tree_util.tree_map_with_path(place, found)


def init_state(make: Callable[..., dict], target: dict, *args) -> dict:
    """Runs make(*args) compiled, so that each array is born in its place.

    No device holds the whole, and no value depends on the mesh.
    """
    return jax.jit(make, out_shardings=state_shardings(target))(*args)


def state_shardings(target: dict) -> dict:
    """Returns the shardings of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, target)
