"""NNX modules as plain functions of a flat dict of parameters.

Modules give structure and names; parameters live outside them as `{dotted name: array}`, a plain pytree whose
names are stable on disk and which sharding rules, optimizer masks and converters match by regular expression.
"""

import functools
from collections.abc import Callable, Hashable

import jax
from flax import nnx, traverse_util


def abstract(make_module, *args, **kwargs) -> nnx.Module:
    """The module with shapes in place of arrays; nothing is allocated."""
    return nnx.eval_shape(lambda: make_module(*args, **kwargs, rngs=nnx.Rngs(0)))


def shapes(make_module: Callable, *args: Hashable) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of make_module(*args), by name."""
    return _shapes(make_module, *args)


@functools.cache
def _shapes(make_module: Callable, *args: Hashable) -> dict[str, tuple[int, ...]]:
    return {name: p.shape for name, p in parameters(abstract(make_module, *args)).items()}


def parameters(module: nnx.Module) -> dict[str, jax.Array]:
    """Flat dict of a module's parameters (arrays or shapes)."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module, nnx.Param)), sep=".")


def bind(module: nnx.Module, params: dict[str, jax.Array]) -> nnx.Module:
    """A module of the same structure that holds `params`. Raises ValueError naming a missing or unexpected name."""
    graph, state = nnx.split(module)
    expected = parameters(module)
    if expected.keys() != params.keys():
        missing, unexpected = sorted(expected.keys() - params.keys()), sorted(params.keys() - expected.keys())
        raise ValueError(f"parameters do not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}")
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(params, sep="."))
    return nnx.merge(graph, state)
