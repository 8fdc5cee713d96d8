"""Share of the peak that JAX's splash attention reaches by libtpu's schedule, without a TPU: kernels.EFFICIENCY.

    PYTHONPATH=.cache/libtpu:. JAX_PLATFORMS=cpu python -m benchmarks.calibration.schedule --topology=v6e:2x2 [--fused]

All tiles of 1,024 are computed, with segments, as of a video. Per score a causal mask takes as long as segments.
"""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import SingleDeviceSharding

from benchmarks import kernel_schedule
from benchmarks.calibration import kernels
from launch import plan

FUSED = flags.DEFINE_bool("fused", False, "one kernel for the backward pass")
SAMPLES = flags.DEFINE_integer("samples", 2, "on a device")
SIDE, ROWS, HEADS, HEAD_DIM = 1024, 4, 8, 128


def main(_) -> None:
    """The command."""
    folder, chip = Path(tempfile.mkdtemp()), kernel_schedule.TOPOLOGY.value.partition(":")[0]
    kernel_schedule.keep_schedules(folder)
    _, devices = plan.describe_topology(kernel_schedule.TOPOLOGY.value)
    attend = kernels.make_attend(False, SIDE * ROWS, SIDE * ROWS, HEADS, (SIDE, SIDE), fused=FUSED.value, whole=True)
    array = jax.ShapeDtypeStruct((SAMPLES.value, HEADS, SIDE * ROWS, HEAD_DIM), jnp.bfloat16,
                                 sharding=SingleDeviceSharding(devices[0]))

    segments = jnp.ones(SIDE * ROWS, jnp.int32)

    def value(q, k, v):
        return attend(q, k, v, kernels.splash.SegmentIds(segments, segments)).astype(jnp.float32).sum()

    jax.jit(jax.grad(value, argnums=(0, 1, 2))).lower(array, array, array).compile()
    products, cycles = {"fwd": 0, "bwd": 0}, {"fwd": 0.0, "bwd": 0.0}
    for path in folder.glob("*splash_mha_*-01-final_bundles.txt"):
        kind = path.name.split("splash_mha_")[1].split("_")[0]
        made = kernels.FUSED_PRODUCTS if FUSED.value and kind == "dkv" else kernels.PRODUCTS[kind]
        found = kernel_schedule.count(path.read_text(), chip, HEADS * SAMPLES.value, ROWS, {"full": ROWS**2},
                                      2.0 * made * SIDE**2 * HEAD_DIM)
        print(json.dumps({"chip": chip, "kernel": kind} | found), flush=True)
        way = "fwd" if kind == "fwd" else "bwd"
        products[way] += made
        cycles[way] += made / found["efficiency"]
    print({way: round(products[way] / cycles[way], 2) for way in products})


if __name__ == "__main__":
    app.run(main)
