"""The train step and the state it changes, from an experiment: what a run executes and a plan compiles."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from launch.setup.initial import Initial
from world_model.parallel import sharding
from world_model.training import state
from world_model.training.train_step import jit_train_step, make_train_step


def make_mesh(config, devices=None):
    """The mesh of config.mesh. Raises ValueError where it, the batch or the heads do not fit the devices."""
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_run(mesh, global_batch_size=config.train.global_batch_size,
                       accumulation=config.train.accumulation, num_heads=config.model.num_heads)
    return mesh


def make_target(experiment, mesh) -> tuple[Callable[..., dict], dict]:
    """(function that makes the state at step 0, of the config's seed or a given one; that state's shapes, dtypes and
    places)."""
    config, model = experiment.config, experiment.model
    shapes = {name: p.shape for name, p in jax.eval_shape(model.init_params, jax.random.key(0)).items()}

    def make_state(seed=config.seed) -> dict:
        return create_state(experiment, model.init_params(jax.random.key(seed)), seed)

    return make_state, state.abstract_state(make_state, sharding.shardings(model.axes(), shapes, mesh))


def create_state(experiment, params: dict, seed) -> dict:
    """The state at step 0 around given parameters."""
    c = experiment.config
    dtype = c.optimizer.frozen_dtype if "frozen_dtype" in c.optimizer else "float32"
    return state.create(params, experiment.optimizer, seed=seed, trainable=c.optimizer.trainable,
                        ema=c.optimizer.ema_decay > 0, frozen=functools.partial(experiment.model.cast, dtype=dtype))


def start(experiment, make_state: Callable[..., dict], target: dict) -> dict:
    """The state at step 0: fresh, or around the weights that train.init_from names, each read into its place, and
    adapters that they lack.

    Raises CheckpointError naming the first other parameter that is missing there or of another shape.
    """
    if not (found := Initial.from_config(experiment.config)):
        return state.init_state(make_state, target, np.int64(experiment.config.seed))  # one program for all seeds
    params = found.params(target["params"])
    lacking = {name: p for name, p in target["params"].items() if name not in params}
    if lacking:
        params |= state.init_state(lambda: state.subset(
            experiment.model.init_params(jax.random.key(experiment.config.seed)), lacking), lacking)
    return jax.jit(lambda params: create_state(experiment, params, experiment.config.seed), donate_argnums=0,
                   out_shardings=state.state_shardings(target))(params)


def step_function(experiment, **specs) -> Callable:
    """The plain step (state, batch, encoders) -> (state, metrics); specs: where arrays lie, as `make_train_step` has
    them."""
    config = experiment.config
    return make_train_step(
        experiment.loss_fn, experiment.loss.count, experiment.optimizer, accumulation=config.train.accumulation,
        ema_decay=config.optimizer.ema_decay, trainable=config.optimizer.trainable,
        cast=functools.partial(experiment.model.cast, dtype=config.train.compute_dtype),
        after_step=experiment.loss.after_step, **specs)


def make_step(experiment, target: dict, *frozen: dict) -> jax.stages.Wrapped:
    """The jitted step; frozen: the encoders' placed arrays, if it takes them."""
    specs = {name: p.sharding.spec for name, p in target["params"].items()}
    frozen_specs = tuple(jax.tree.map(lambda a: a.sharding.spec, tree) for tree in frozen)
    return jit_train_step(step_function(experiment, specs=specs, frozen_specs=frozen_specs), target, *frozen)


def abstract_batch(experiment, mesh) -> dict:
    """Shapes of one global batch of stored samples, placed: what any experiment's loss takes."""
    placed, size = sharding.batch_sharding(mesh), experiment.config.train.global_batch_size
    return {name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=placed)
            for name, (shape, dtype) in experiment.inputs.stored_fields().items()}
