"""Every test runs on 8 virtual CPU devices, so that any mesh can be built; compiling counts more than running.

Eight devices on the two cores of a loaded machine wait for each other in every collective. So that waiting is only ever
slow: threads for all of them (PJRT_NPROC; by default one a core, which waiting devices can use up), one program at a
time, and minutes instead of 40 s before XLA ends the process. The scheduler that looks for concurrency is off: it
lets two stacks of layers exchange at once, which jaxlib 0.10 takes for one exchange of too many devices, and aborts.

A program is compiled once per worker, by whatever module or command asks for it first: JAX's cache, in a folder that
goes with the worker.
"""

import ctypes
import gc
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="wamax-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
os.environ["PJRT_NPROC"] = "16"
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    "--xla_cpu_collective_call_terminate_timeout_seconds=300"])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

from tests import lerobot_files


def pytest_sessionfinish():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_module():
    """Compiled programs of all modules together would take 8 GB a worker: malloc gives back what it holds of them.

    What a module left in cycles ends here too. A failed save leaves futures whose end asyncio reports with a traceback,
    and a traceback is parsed: met inside `ast.parse` of a later module, it breaks that one (cpython issue 106905).
    """
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def v21(tmp_path):
    """A copy of the set that LeRobot wrote in its version 2.1."""
    return lerobot_files.copied("lerobot_v21", tmp_path)


@pytest.fixture
def v30(tmp_path):
    """Likewise, in its version 3.0."""
    return lerobot_files.copied("lerobot_v30", tmp_path)


@pytest.fixture(scope="module")
def quick_compiles():
    """Programs are hardly optimised: of models so small compiling is all the time that they take."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A tiny model of PushT that is ready to be served."""
    from tests.serving import make_engine  # the client is an extra

    engine = make_engine(tmp_path_factory.mktemp("pusht"), "pusht", sessions=4, batch_sizes=(4,))
    engine.warm()
    return engine
