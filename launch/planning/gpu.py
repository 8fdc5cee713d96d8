"""GPUs that are not here: XLA compiles for a card from its description, anywhere (JAX 0.11 with its CUDA plug-in).

The figures are those of the descriptions in XLA's repository (openxla/xla, xla/backends/gpu/target_config/specs, commit
4336d12 for a100, a6000 and h200, 0774019 for h100, 300ec95 for b200); versions are those of CUDA 13. Nobody describes
l40s and rtx4090 there: theirs are of NVIDIA's Ada white paper and data sheets, and what the driver shows.
"""

import contextlib
import difflib
import importlib.util
from typing import NamedTuple

import jax
from jax.experimental import topologies

from world_model.analysis.chips import CHIPS, Chip

PLUGIN = "jax_plugins.xla_cuda13"
CUDNN = 91900  # the version for which attention is lowered
DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  cuda_compute_capability {{ {capability} }}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock_ghz}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_per_block} l2_cache_size: {l2}
  device_memory_size: {memory} memory_bandwidth: {bandwidth}
  device_vendor: "NVIDIA Corporation" device_address_bits: 64 name: "{name}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.19.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 19 }}
device_description_str: "{name}"
"""


class Card(NamedTuple):
    """What differs between descriptions."""

    capability: str
    cores: int  # multiprocessors
    fpus: int  # per core
    clock_ghz: float
    shared: int  # bytes per core
    shared_per_block: int
    l2: int
    memory: int
    bandwidth: int  # bytes per second
    threads: int = 2048  # per core


ADA = "major: 8 minor: 9 feature_extension: NONE"
HOPPER = "major: 9 feature_extension: ACCELERATED_FEATURES"
CARDS = {
    "a100": Card("major: 8 feature_extension: NONE", 108, 64, 1.41, 167936, 166912, 41943040,
                 85100068864, 2039040000000),
    "a6000": Card("major: 8 minor: 6 feature_extension: NONE", 84, 128, 1.8, 102400, 101376, 6291456,
                  51041271808, 768096000000, 1536),
    "l40s": Card(ADA, 142, 128, 2.52, 102400, 101376, 100663296, 47810936832, 864000000000, 1536),
    "rtx4090": Card(ADA, 128, 128, 2.52, 102400, 101376, 75497472, 25393692672, 1008000000000, 1536),
    "h100": Card(HOPPER, 132, 128, 1.98, 233472, 232448, 52428800, 84942979072, 3352320000000),
    "h200": Card(HOPPER, 132, 128, 1.98, 233472, 232448, 52428800, 151397597184, 4800000000000),
    "b200": Card("major: 10 feature_extension: ACCELERATED_FEATURES", 148, 128, 1.965, 233472, 232448, 132644864,
                 191514411008, 7672320000000),
}


def described(topology: str) -> tuple[Chip, list]:
    """(chip, devices) of "h100", "h100:8" (GPUs of one host) or "h100:2x8" (hosts, GPUs of each). Raises ValueError on
    a card that nobody describes, a shape that is none, and where JAX or its plug-in cannot compile for one."""
    name, _, shape = topology.partition(":")
    sizes = (shape or "1").split("x")
    if len(sizes) > 2 or not all(size.isdigit() and int(size) for size in sizes):
        raise ValueError(f"--topology={topology}: expected GPUs, or hosts x GPUs, as {name}:8 or {name}:2x8")
    check_compiler(topology)
    hosts, gpus = ["1", *sizes][-2:]
    text = DESCRIPTION.format(**CARDS[name]._asdict(), name=CHIPS[name].kind)
    found = topologies.get_topology_desc(platform="cuda", topology_name=name, target_config=text,
                                         topology=f"1x{hosts}x{gpus}")
    return CHIPS[name], list(found.devices)


def check_compiler(topology: str) -> None:
    """Raises ValueError where JAX or its plug-in is missing or too old to compile for a card that is not here."""
    package, _, plugin = PLUGIN.partition(".")
    there = importlib.util.find_spec(package) and importlib.util.find_spec(f".{plugin}", package)
    if jax.__version_info__ < (0, 11) or not there:
        raise ValueError(
            f"--topology={topology} is compiled by JAX 0.11 or newer (Python 3.12) with its CUDA plug-in; here is "
            f"{jax.__version__}{'' if there else ' without it'}: make install "
            "PYTHON=python3.12, then pip install --no-deps jax-cuda13-plugin and jax-cuda13-pjrt of JAX's version")


def nearest(name: str) -> str:
    """The names of described cards, the likeliest first."""
    close = difflib.get_close_matches(name, CARDS, n=len(CARDS), cutoff=0.3)
    return ", ".join([*close, *(card for card in CARDS if card not in close)])


@contextlib.contextmanager
def cudnn_assumed():
    """Lets JAX lower attention for cuDNN inside, where there is none: it asks for the version of the one here."""
    from jax._src.cudnn import fused_attention_stablehlo as module

    before, module.check_cudnn_version = module.check_cudnn_version, lambda: CUDNN
    try:
        yield
    finally:
        module.check_cudnn_version = before
