"""Logical axes of parameters by their names; world_model/parallel/sharding.py says where each axis lives.

A rule is (regular expression, axes): the expression must match the end of a name from the start of one of its dotted
parts, and the first rule that does counts. What the layers of a stack are made of is named here; a family adds what
stands outside its stacks (`param_axes` of its module).
"""

import math
import re

import jax.numpy as jnp

from world_model.parallel import sharding

LANES, FILLING = 128, 0.05  # of a vector unit; the share of zeros at most
WHOLE = None  # axes of what every device keeps whole, whatever its rank
Rules = tuple[tuple[str, tuple | None], ...]

# Parameters below a part of this name have a leading axis, one entry a layer.
_STACKED = re.compile(r"(^|\.)(\w+_)?blocks\.")
_ADAPTER = re.compile(r"(.+)\.lora_([ab])")

LAYER_RULES: Rules = (
    (r"(self|cross)_attn\.(q|k|v|k_image|v_image)\.kernel", ("embed", "heads")),
    (r"(self|cross)_attn\.(q|k|v|k_image|v_image)\.bias", ("heads",)),
    (r"(self|cross)_attn\.(q|k|k_image)_norm\.scale", ("heads",)),
    (r"(self|cross)_attn\.o\.kernel", ("heads", "embed")),
    (r"mlp\.(fc1|gate)\.kernel", ("embed", "mlp")),
    (r"mlp\.(fc1|gate)\.bias", ("mlp",)),
    (r"mlp\.fc2\.kernel", ("mlp", "embed")),
    (r"modulation", WHOLE),  # each layer has one, added to each timestep's own
)  # fmt: skip

# Convolutions of the autoencoders are small beside the model, and every device runs them on its own rows.
ENCODER_RULES: Rules = (*LAYER_RULES,
    (r"self_attn\.qkv\.kernel", ("embed", None)),
    (r"token_embedding", (None, "embed")),
    (r"(encoder|decoder)\..+", WHOLE),
)  # fmt: skip


def axes_of(params: dict, rules: Rules) -> dict[str, tuple]:
    """{name: logical axes} of {name: array or shape}. Small parameters that no rule names (biases, norms, little heads)
    stay whole on every device.

    Raises ValueError on one of `sharding.SMALL` elements or more: it would be a copy on every chip, without a word.
    """
    found = {}
    for name, p in params.items():
        found[name], named = _axes(name, len(p.shape), rules)
        if not named and math.prod(p.shape) >= sharding.SMALL:
            raise ValueError(f"parameter {name} {tuple(p.shape)} is named by no sharding rule, and is too large to be "
                             f"kept whole on every device: add a rule (pattern, axes) to its module's param_axes; axes "
                             f"are of {', '.join(sharding.RULES)}, or axes.WHOLE")
    return found


def gather_weights(params: dict, shapes: dict[str, tuple[int, ...]], rules: Rules) -> dict:
    """{name: weight} with the weights of a layer, or of all that stands outside the stacks, whole over `fsdp`; stacked
    ones stay as they are until their turn comes in the scan. shapes: those of the whole weights, by name."""
    return {name: p if is_stacked(name) else sharding.gather_weight(p, _axes(name, p.ndim, rules)[0], shapes[name])
            for name, p in params.items()}


def fill_lanes(params: dict, rules: Rules) -> dict:
    """{name: weight} of a layer, with zeros that fill an MLP's width up to whole vector lanes where few are missing.

    Values stay. Of a width of 3,420 a TPU lays tokens minor, and copies every array back and forth.
    """
    def filled(name: str, p):
        wide = [axis == "mlp" and -size % LANES <= FILLING * size for axis, size in
                zip(_axes(name, p.ndim, rules)[0], p.shape, strict=True)]
        return jnp.pad(p, [(0, -size % LANES if fills else 0) for size, fills in zip(p.shape, wide, strict=True)])

    return {name: filled(name, p) for name, p in params.items()}


def is_stacked(name: str) -> bool:
    """Whether a parameter has a leading axis of layers."""
    return bool(_STACKED.search(name))


def layer_shapes(shapes: dict[str, tuple[int, ...]], stack: str = "blocks") -> dict[str, tuple[int, ...]]:
    """Shapes of one layer of the stack of that name, from those of the model."""
    prefix = f"{stack}."
    return {name.removeprefix(prefix): shape[1:] for name, shape in shapes.items() if name.startswith(prefix)}


def _axes(name: str, rank: int, rules: Rules) -> tuple[tuple, bool]:
    """(axes of that many, whether a rule names them)."""
    stacked = ("layers",) if is_stacked(name) else ()
    if adapter := _ADAPTER.fullmatch(name):  # rows of the kernel by rank, rank by its columns
        (*_, rows, columns), named = _axes(f"{adapter[1]}.kernel", 2 + len(stacked), rules)
        return stacked + ((rows, None) if adapter[2] == "a" else (None, columns)), named
    for pattern, axes in rules:
        if re.search(rf"(^|\.)({pattern})$", name):
            return stacked + (axes or (None,) * (rank - len(stacked))), True
    return stacked + (None,) * (rank - len(stacked)), False
