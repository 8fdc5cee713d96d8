"""What the accelerator here does at best: products and copies; prints one JSON line.

    python -m benchmarks.rates [--side=8192] [--mib=4096]

TFLOP/s of a bfloat16 and of a float32 product of two squares (with and without TF32), GB/s read and written by an
element-wise pass. Estimates of launch/planning/gpu.py take their rates from here once they are measured.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags

SIDE = flags.DEFINE_integer("side", 8192, "rows and columns of the squares", lower_bound=1)
MIB = flags.DEFINE_integer("mib", 4096, "size of the array that is copied", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 10, "timed calls, after two that are not", lower_bound=1)


def seconds(run, *args) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(REPEATS.value + 2):
        began = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def product_rate(dtype, precision: str) -> float:
    """TFLOP/s of a product of two squares of random numbers."""
    a, b = (jax.random.normal(key, (SIDE.value, SIDE.value), dtype) for key in jax.random.split(jax.random.key(0)))
    return 2 * SIDE.value**3 / seconds(jax.jit(lambda a, b: jnp.dot(a, b, precision=precision)), a, b) / 1e12


def main(_) -> None:
    """Runs the command."""
    array, device = jnp.zeros((MIB.value, 2**19), jnp.bfloat16), jax.devices()[0]
    copied = 2 * array.nbytes / seconds(jax.jit(lambda x: x + 1), array) / 1e9
    print(json.dumps({
        "device": device.device_kind, "jax": jax.__version__, "platform": device.client.platform_version,
        "bfloat16_tflops": product_rate(jnp.bfloat16, "default"),
        "float32_tflops": product_rate(jnp.float32, "highest"),
        "tf32_tflops": product_rate(jnp.float32, "default"), "copy_gb_per_second": copied}))


if __name__ == "__main__":
    app.run(main)
