"""Compiles for a TPU that is not there, in a process of its own (libtpu must not be seen by the tests' JAX): every
attention kernel forward and backward, then the train step of the 14B's debug arm by `launch.plan`. Prints one JSON
object.

    PYTHONPATH=.cache/libtpu:. python -m tests.tpu_compile
"""

import json

import jax
import jax.numpy as jnp
from absl import app
from jax.sharding import SingleDeviceSharding

from configs import dreamzero_14b
from launch import plan
from world_model import attention
from world_model.analysis.program import Program
from world_model.attention import KERNELS, context, make_attend, runs_on, tokens, visibility
from world_model.batch import Layout
from world_model.families.dreamzero.layout import GROUPS
from world_model.families.dreamzero.visibility import TABLES

LAYOUT = Layout(frames=17, height=8, width=8, frames_per_block=2, actions_per_block=8, states_per_block=2)
SEQUENCE = tokens.make_sequence(LAYOUT, 16, [(g, range(3)) for g in GROUPS])
HEADS, HEAD_DIM, CONTEXT = 2, 128, 77


def compile_gradient(attend, device, keys: int, *masks) -> dict:
    """What a compiled forward and backward pass is made of."""
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))
    queries = array(1, tokens.length(SEQUENCE), HEADS, HEAD_DIM)
    contexts = array(1, keys, HEADS, HEAD_DIM)
    def value(q, k, v, *masks):
        return attend(q, k, v, *masks).astype(jnp.float32).sum()
    compiled = jax.jit(jax.grad(value, argnums=(0, 1, 2))).lower(
        queries, contexts, contexts, *(array(*shape, dtype=bool) for shape in masks)).compile()
    program = Program(compiled.as_text())
    return {"flops": program.executed_flops(), "kernel_flops": program.kernel_flops()}


def main(_) -> None:
    """The command."""
    _, devices = plan.describe_topology("v5e:2x2")
    table, count = visibility.get_table("dreamzero", TABLES), tokens.length(SEQUENCE)
    found = {}
    for name in [name for name in KERNELS if runs_on(name, "tpu")]:
        attend = make_attend(name, table, SEQUENCE, SEQUENCE)
        found[name] = compile_gradient(attend, devices[0], count, (1, count))
        found[f"{name}, drawn"] = compile_gradient(
            attend, devices[0], count, (1, count), (len(SEQUENCE), len(SEQUENCE)))
    found["context"] = compile_gradient(context.fused, devices[0], CONTEXT)
    attention.MOST_PADDING = float("inf")  # tokens stand as the kernel wants them, as the 14B's do
    config = dreamzero_14b.get_config("debug")
    config.model.update(attention="flash", num_layers=2)
    config.train.global_batch_size = 4
    found["plan"] = plan.plan(config, "v5p:2x2x1")
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
