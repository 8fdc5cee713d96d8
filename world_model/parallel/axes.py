"""Logical axes of parameters, of the block stacks and the frozen encoders; world_model/parallel/sharding.py says where
each axis lives."""

import re

from world_model.parallel import sharding

STACKED = "blocks."

# Name without the leading "blocks." or "final_block." (and stream) -> logical axes; first match counts.
_AXES: tuple[tuple[str, tuple], ...] = (
    (r"(self|cross)_attn\.(q|k|v|k_image|v_image)\.kernel", ("embed", "heads")),
    (r"(self|cross)_attn\.(q|k|v|k_image|v_image)\.bias", ("heads",)),
    (r"(self|cross)_attn\.(q|k|k_image)_norm\.scale", ("heads",)),
    (r"(self|cross)_attn\.o\.kernel", ("heads", "embed")),
    (r"self_attn\.qkv\.kernel", ("embed", None)),
    (r"mlp\.(fc1|gate)\.kernel", ("embed", "mlp")),
    (r"mlp\.fc1\.bias", ("mlp",)),
    (r"mlp\.fc2\.kernel", ("mlp", "embed")),
    (r"(action_)?time_projection\.kernel", ("embed", "time")),
    (r"(patch_embedding|(action_)?text_embedding\.fc[12]|(action_)?time_embedding\.fc[12]|image_embedding\.fc2"
     r"|state_encoder\.fc2|action_encoder\.fc[123]|action_embedding)\.kernel", (None, "embed")),
    (r"token_embedding", (None, "embed")),
    (r"(head\.proj|action_decoder\.fc1|video_head|action_head)\.kernel", ("embed", None)),
)  # fmt: skip


def axes_of(params: dict) -> dict[str, tuple]:
    """{name: logical axes} of {name: array or shape}; what no rule names (biases, norms, small heads) stays whole."""
    return {name: _axes(name, len(p.shape)) for name, p in params.items()}


def gathered(params: dict, shapes: dict[str, tuple[int, ...]]) -> dict:
    """{name: weight} with the weights of a block, or of all that stands outside the stack, whole over `fsdp`; stacked
    ones stay as they are until their turn comes in the scan. shapes: of the whole weights, by name."""
    return {name: p if name.startswith(STACKED) else sharding.gathered(p, _axes(name, p.ndim), shapes[name])
            for name, p in params.items()}


def block_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Those of one block of the stack, from those of the model."""
    return {name.removeprefix(STACKED): shape[1:] for name, shape in shapes.items() if name.startswith(STACKED)}


def _axes(name: str, rank: int) -> tuple:
    stacked = ("layers",) if name.startswith(STACKED) else ()
    base = re.sub(r"^((blocks|final_block)\.)?((video|action)\.)?", "", name)
    if adapter := re.fullmatch(r"(.+)\.lora_([ab])", base):  # rows of the kernel by rank, rank by its columns
        rows, columns = _axes(f"{adapter[1]}.kernel", 2)
        return stacked + ((rows, None) if adapter[2] == "a" else (None, columns))
    for pattern, axes in _AXES:
        if re.fullmatch(pattern, base):
            return stacked + axes
    return stacked + (None,) * (rank - len(stacked))
