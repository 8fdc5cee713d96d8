"""Low-rank adapters (arXiv 2106.09685): a linear's kernel W acts as W + alpha / rank A B.

A [inputs, rank] begins uniform within 1 / sqrt(inputs) and B [rank, outputs] at zero, so the model begins as its base.
Both are parameters like others, `<linear>.lora_a` and `<linear>.lora_b`; optimizer.trainable says what trains, and
moments exist for that alone.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

ADAPTER = re.compile(r"\.lora_[ab]$")
initial = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def with_adapters(make_layer: Callable, linear: type[Any], pattern: str, rank: int, alpha: float) -> Callable:
    """Wraps make_layer(rngs=...): modules of type `linear` whose path matches `pattern` get adapters.

    What it returns raises ValueError where no path matches.
    """
    def make(*, rngs: nnx.Rngs) -> nnx.Module:
        layer = make_layer(rngs=rngs)
        paths = {".".join(map(str, path)): node for path, node in nnx.iter_graph(layer) if isinstance(node, linear)}
        found = [node for path, node in paths.items() if re.search(pattern, path)]
        if not found:
            raise ValueError(f"model.lora_pattern = {pattern!r} matches none of a layer's linears: {', '.join(paths)}")
        for node in found:
            inputs, outputs = node.kernel.shape
            node.lora_a = nnx.Param(initial(rngs.params(), (inputs, rank)))
            node.lora_b = nnx.Param(jax.numpy.zeros((rank, outputs)))
            node.lora_scale = alpha / rank
        return layer

    return make


def merge(params: Mapping[str, jax.Array], alpha: float) -> dict[str, jax.Array]:
    """Adds every adapter to its kernel, in float32, and returns the other flat parameters; layers may be stacked."""
    merged = {name: x for name, x in params.items() if not ADAPTER.search(name)}
    for name in [name for name in params if name.endswith(".lora_a")]:
        linear = name.removesuffix(".lora_a")
        a, b, kernel = (jnp.asarray(params[f"{linear}.{part}"]) for part in ("lora_a", "lora_b", "kernel"))
        merged[f"{linear}.kernel"] = kernel + (alpha / a.shape[-1]) * (a @ b)
    return merged
