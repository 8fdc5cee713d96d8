"""Many hosts as one run: they join by the environment, agree before anything is computed, and stop together.

`jax.distributed` knows Cloud TPU, GKE and SLURM. Anywhere else the three variables of `EXPLICIT` name the coordinator,
as in JAX_COORDINATOR_ADDRESS=10.0.0.1:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0. A single host needs none.
"""

import importlib.metadata
import json
import os
import signal
import sys
import time

import jax
from jax._src import distributed  # the key-value store of the coordinator has no public name
from jax._src.clusters import ClusterEnv
from jax._src.lax.parallel import reduce_scatter_p
from jax.experimental import multihost_utils
from jax.interpreters import mlir

from world_model import kinds

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
CLOCK_SECONDS = 300  # how far two hosts' clocks may be apart
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


class HostError(RuntimeError):
    """Raised where the hosts cannot run together; the message says which and why."""


def join(connect_seconds: int, heartbeat_seconds: int) -> None:
    """Connects to the other hosts, if the environment names any; call it before any other use of JAX.

    connect_seconds: how long to wait for the coordinator. heartbeat_seconds: silence after which a host counts as dead
    and the others end. Raises HostError where the environment makes no sense or the coordinator does not answer.
    """
    explicit = read_environment()
    known = any(env.is_env_present() for env in ClusterEnv._cluster_types if not env.opt_in_only_method)
    if not explicit and not known:
        return
    if explicit:
        # The runtime ends a process that gets no answer without asking Python: say beforehand what it waits for.
        print(f"host {explicit['process_id']} of {explicit['num_processes']} connects to "
              f"{explicit['coordinator_address']}, for at most {connect_seconds} s", file=sys.stderr, flush=True)
    _make_cpu_safe()
    try:
        jax.distributed.initialize(**explicit, initialization_timeout=connect_seconds,
                                   heartbeat_timeout_seconds=heartbeat_seconds)
    except (RuntimeError, ValueError) as error:
        raise HostError(f"no connection to the other hosts within {connect_seconds} s "
                        f"({os.environ.get(EXPLICIT[0], 'coordinator as found by jax.distributed')}): "
                        f"{str(error).splitlines()[0]}") from error


def read_environment() -> dict:
    """Reads the coordinator from the variables of `EXPLICIT`, as jax.distributed.initialize takes it; {} without any.

    Raises HostError where only some are set or a number makes no sense.
    """
    given = [name for name in EXPLICIT if os.environ.get(name)]
    if given and len(given) < len(EXPLICIT):
        raise HostError(f"{', '.join(given)} set, {', '.join(n for n in EXPLICIT if n not in given)} not: "
                        "all three name a coordinator, none means a single host or a known cluster")
    if not given:
        return {}
    address, count, index = (os.environ[name] for name in EXPLICIT)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise HostError(f"JAX_PROCESS_ID = {index}, JAX_NUM_PROCESSES = {count}: expected 0 <= id < number")
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def _make_cpu_safe() -> None:
    """Sets what several processes on CPU need; other platforms do not notice.

    The programs of a process may overlap, and their exchanges then meet in another order on another host, so programs
    run one at a time. Gloo's reduce-scatter may give wrong values and stops after 30 s whatever it is told (jax issues
    40830 and 40831), so each host gets everyone's part of its share and adds them, which moves the same bytes.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mlir.register_lowering(reduce_scatter_p, mlir.lower_fun(_scatter, multiple_results=False), platform="cpu")


def _scatter(x, *, scatter_dimension: int, axis_name, axis_index_groups, axis_size: int, tiled: bool):
    """Computes jax.lax.psum_scatter as an all-to-all and a sum."""
    if tiled:
        axis, shape = scatter_dimension, x.shape
        x = x.reshape(*shape[:axis], axis_size, shape[axis] // axis_size, *shape[axis + 1:])
    return jax.lax.all_to_all(x, axis_name, scatter_dimension, scatter_dimension,
                              axis_index_groups=axis_index_groups).sum(scatter_dimension)


def agree(config: dict, workdir: str, code_version: str, timeout_seconds: int) -> None:
    """Checks that every host runs the same config with the same code and packages.

    Otherwise all raise HostError with a difference; they also do where clocks are more than CLOCK_SECONDS apart.
    """
    if jax.process_count() == 1:
        return
    own = {"code": code_version, "workdir": workdir, **{name: importlib.metadata.version(name) for name in PACKAGES},
            **{f"config.{key}": value for key, value in _leaves(config)}}
    everyone = _exchange("facts", {"clock": time.time(), **own}, timeout_seconds)
    clocks = [host.pop("clock") for host in everyone]
    _check_equal(everyone, "start all with the same config and code")
    apart = max(clocks) - min(clocks)
    if apart > CLOCK_SECONDS:
        raise HostError(f"the clock of host {clocks.index(max(clocks))} is {apart:.0f} s ahead of host "
                        f"{clocks.index(min(clocks))}'s: set them (NTP); buckets refuse a host whose clock is wrong")


def agree_on(what: str, value, timeout_seconds: int) -> None:
    """Checks that all hosts see the same `value` (JSON), or all raise HostError; each `what` is asked once a run."""
    if jax.process_count() > 1:
        _check_equal(_exchange(what, {what: value}, timeout_seconds), "all must see the same files: is the workdir the "
                     "same mounted folder on each?")


def _exchange(name: str, own: dict, timeout_seconds: int) -> list[dict]:
    """Collects what every host says, by host. Raises HostError where one says nothing in time."""
    client = distributed.global_state.client
    client.key_value_set(f"wamax/{name}/{jax.process_index()}", json.dumps(own))
    return [kinds.parse(_wait_for(client, f"wamax/{name}/{i}", timeout_seconds * 1000, i),
                        kinds.MAP, f"what host {i} says") for i in range(jax.process_count())]


def _check_equal(everyone: list[dict], advice: str) -> None:
    for index, host in enumerate(everyone):
        for key in sorted(everyone[0].keys() | host.keys()):
            if everyone[0].get(key) != host.get(key):
                raise HostError(f"hosts differ: {key} is {everyone[0].get(key)!r} on host 0 and {host.get(key)!r} on "
                                f"host {index}; {advice}")


def _wait_for(client, key: str, milliseconds: int, host: int) -> str:
    try:
        return client.blocking_key_value_get(key, milliseconds)
    except Exception as error:  # the runtime's own error types are not public
        raise HostError(f"host {host} did not say its {key.split('/')[1]} within {milliseconds // 1000} s") from error


def _leaves(config: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Lists (dotted key, value) of every leaf."""
    found = []
    for key, value in config.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


class StopSignal:
    """Context in which SIGTERM or SIGINT asks the loop to save and end; a second SIGINT ends the process at once.

    Several hosts must end at the same step: jax's preemption service hears SIGTERM on any of them and agrees on one.
    """

    def __enter__(self):
        self.asked = False
        self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt)}
        if jax.process_count() == 1:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, *_):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, *_):
        self.asked = True

    def requested(self, step: int) -> bool:
        """Whether to end before `step`."""
        if jax.process_count() > 1:
            self.asked = multihost_utils.reached_preemption_sync_point(step)
        return self.asked
