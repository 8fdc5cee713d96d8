"""The compiled steps of a run over its mesh, or of several runs at once: one program that a device computes for all.

Runs at once have one config but for the seed. Their states and batches are stacked, the step is mapped over the new
axis (jax.vmap), and that axis lies over as many devices as divide it, so that no step of one run waits for another's.
Each adds what it would alone in another order: results agree to rounding (tests/test_seeds.py).
"""

import contextlib
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch.setup import cpu_memory, training
from world_model.parallel import host_rows
from world_model.training.state import state_shardings

SEEDS = "seeds"  # the axis of runs at once


class Steps:
    """The steps of one run.

    mesh: where its state lies; target: the abstract state; encoders: placed arrays of its encoders.
    """

    def __init__(self, experiment, mesh: Mesh, target: dict, encoders: dict):
        self._mesh, self._target, self._encoders = mesh, target, encoders
        self._step = training.make_step(experiment, target, encoders)
        self.devices, self.flops_per_sample = mesh.size, experiment.model.flops_per_sample

    def context(self):
        """The context of everything that the run computes."""
        return jax.set_mesh(self._mesh)

    def joined(self, states: list[dict]) -> dict:
        """What `__call__` takes, of the runs' states."""
        return states[0]

    def state_of(self, joined: dict, index: int) -> dict:
        """The state of a run."""
        del index
        return joined

    def placed(self, rows: list[dict]) -> dict:
        """This host's rows of the runs' batches, on the devices."""
        return host_rows.put_batch(rows[0], self._mesh)

    def compile(self, batch: dict, say: Callable[[str], None]) -> None:
        """Compiles ahead of the first step, to tell the time and the memory it takes."""
        self._step = compile_step(self._step, say, self._target, batch, self._encoders)

    def __call__(self, joined: dict, batch: dict) -> tuple[dict, list[dict]]:
        """(joined, metrics of each run) after a step; the state that is given is donated."""
        joined, measured = self._step(joined, batch, self._encoders)
        return joined, [measured]


class StepsAtOnce(Steps):
    """The steps of several runs. mesh: of one device, where the state of each lies outside of the steps."""

    def __init__(self, experiment, mesh: Mesh, target: dict, encoders: list[dict]):
        count = len(encoders)
        devices = jax.devices()[:math.gcd(count, len(jax.devices()))]
        self._over = NamedSharding(Mesh(np.array(devices), (SEEDS,)), PartitionSpec(SEEDS))
        self._mesh, self._one = mesh, target
        self.devices, self.flops_per_sample = len(devices), experiment.model.flops_per_sample
        self._target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=self._over), target)
        self._encoders = self._stacked(encoders)
        step = jax.vmap(training.step_function(experiment))

        def together(states: dict, batches: dict, encoders: dict):
            states, measured = step(states, batches, encoders)
            return states, [jax.tree.map(lambda x, i=i: x[i], measured) for i in range(count)]

        everywhere = NamedSharding(self._over.mesh, PartitionSpec())
        self._step = jax.jit(together, donate_argnums=0, out_shardings=(self._over, everywhere))

    def context(self):
        """A context without a mesh, because a run's rows are not split."""
        return contextlib.nullcontext()

    def joined(self, states: list[dict]) -> dict:
        return self._stacked(states)

    def state_of(self, joined: dict, index: int) -> dict:
        return jax.device_put(jax.tree.map(lambda x: x[index], joined), state_shardings(self._one))

    def placed(self, rows: list[dict]) -> dict:
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *rows), self._over)

    def __call__(self, joined: dict, batch: dict) -> tuple[dict, list[dict]]:
        return self._step(joined, batch, self._encoders)

    def _stacked(self, trees: list[dict]) -> dict:
        return jax.device_put(jax.tree.map(lambda *x: jnp.stack(x), *trees), self._over)


def compile_step(step, say: Callable[[str], None], *args: dict):
    """Compiles a jitted step for abstract or placed arguments."""
    if jax.default_backend() == "cpu":
        cpu_memory.keep_freed()
    began = time.monotonic()
    compiled = step.lower(*args).compile()
    memory = compiled.memory_analysis()
    held, scratch = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
    say(f"compiled in {time.monotonic() - began:.1f} s; per device {held:.0f} MiB of state, encoders and batch, "
        f"{scratch:.0f} MiB of temporaries")
    return compiled
