"""Speed of attention kernels by shape, forward and backward, on the device here; a JSON line per kernel and shape.

    python -m benchmarks.attention [--shapes=14b,5b] [--kernels=blockwise,cudnn,flash] [--heads=4] [--repeats=20]

The sequences and visibility tables are those of the configs, for one sample in bfloat16; --heads takes fewer heads than
the model has (time is proportional to them). TFLOP/s counts the products of visible pairs alone, 2 forward and 4
backward, so that what a kernel computes in vain makes it slower; `covered` is what the tiles of flash compute over
that. A few keys are not valid. `difference` is the largest one of output and gradients from the dense reference in
float32, of one head, relative to the largest number there.
"""

import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from configs import dreamzero_5b, dreamzero_14b
from launch.setup.experiment import Experiment
from world_model.attention import KERNELS, make_attend, runs_on, tokens, visibility
from world_model.attention.packing import PackedOrder, choose_tile, make_tiles
from world_model.families.dreamzero.layout import make_sequence

CONFIGS = {"14b": dreamzero_14b, "5b": dreamzero_5b}
SHAPES = flags.DEFINE_list("shapes", list(CONFIGS), "the configs whose shapes are measured")
ARM = flags.DEFINE_string("arm", "", "the argument of those configs; debug: small, for a CPU")
ONLY = flags.DEFINE_list("kernels", [], "kernels that are measured; default: all that this device runs")
HEADS = flags.DEFINE_integer("heads", 4, "attention heads", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 20, "timed calls, after two that are not", lower_bound=1)

INVALID = 7  # keys, an odd number


def measure(kernel: str, model, heads: int, repeats: int) -> dict:
    """Measures value and gradient of one layer's self-attention."""
    spec = model.spec
    sequence, table = make_sequence(model.spec), spec.table()
    attend = make_attend(kernel, table, sequence, sequence, spec.window_frames)
    shape = 1, tokens.length(sequence), heads, spec.dim // spec.num_heads
    q, k, v, weight = (jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4))
    last = max(s.stop for s in sequence if s.group is tokens.NOISY_VIDEO)
    valid = jnp.ones(shape[:2], bool).at[:, last - INVALID:last].set(False)

    def gradients(attend):
        def value(q, k, v):
            out = attend(q, k, v, valid)
            return (out * weight[:, :, :q.shape[2]]).sum(dtype=jnp.float32), out

        return jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))

    run, times = gradients(attend), []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(run(q, k, v))
        times.append(time.perf_counter() - began)
    exact = gradients(make_attend("reference", table, sequence, sequence, spec.window_frames))
    with jax.default_matmul_precision("highest"):
        wanted = exact(*(x[:, :, :1].astype(jnp.float32) for x in (q, k, v)))
    differences = jax.tree.map(lambda x, y: jnp.abs(x[:, :, :1] - y).max() / jnp.abs(y).max(), run(q, k, v), wanted)
    seconds = statistics.median(times[2:])
    pairs = int(visibility.dense_mask(table, sequence, sequence, spec.window_frames).sum())
    flops = 6 * 2.0 * pairs * heads * shape[-1]
    return {"kernel": kernel, "tokens": shape[1], "heads": heads, "head_dim": shape[-1], "visible_pairs": pairs,
            "milliseconds": 1e3 * seconds, "tflop_per_second": flops / seconds / 1e12,
            "difference": float(max(jax.tree.leaves(differences))),
            "covered": covered(table, sequence, spec.window_frames) / pairs if kernel == "flash" else None,
            "device": jax.devices()[0].device_kind, "load": os.getloadavg()[0]}


def covered(table, sequence, window_frames: int) -> int:
    """Counts the pairs in the tiles that flash computes."""
    packed = PackedOrder(sequence, choose_tile(sequence, sequence))
    return make_tiles(table, packed, packed, window_frames).computed * packed.tile**2


def main(_) -> None:
    """Runs the command."""
    here = [name for name in KERNELS if runs_on(name, jax.default_backend())]
    for shape in SHAPES.value:
        model = Experiment(CONFIGS[shape].get_config(ARM.value)).model
        for kernel in ONLY.value or here:
            print(json.dumps({"shape": shape} | measure(kernel, model, HEADS.value, REPEATS.value)), flush=True)


if __name__ == "__main__":
    app.run(main)
