"""A reference's parameter names and layouts, and ours, as one table read in both directions: a `NameTable` a format.

DreamZero's is here, from the public state dict of dreamzero0/dreamzero (1317 tensors at 14B, 997 at 5B), and with it
the original Wan's, which is the same without actions.
Theirs are PyTorch layouts (transforms.py); ours have the first L - 1 blocks stacked under `blocks.` and the last under
`final_block.`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np

from world_model.weights.transforms import KINDS, TRANSPOSE, Transform

Modules = tuple[tuple[str, str, str], ...]  # theirs, ours, kind


@dataclasses.dataclass(frozen=True)
class NameTable:
    """Every module of a family."""

    modules: Modules
    block_modules: Modules  # theirs under blocks.{i}., ours under blocks. (stacked) or final_block.
    image_modules: Modules = ()  # these two only in models with an image context
    image_block_modules: Modules = ()
    unread_modules: Modules = ()  # of theirs, read by nobody: a copy of ours when written, left alone when read


VIDEO_MODULES = (  # theirs, ours, kind
    ("patch_embedding", "patch_embedding", "patch"),
    ("text_embedding.0", "text_embedding.fc1", "linear"),
    ("text_embedding.2", "text_embedding.fc2", "linear"),
    ("time_embedding.0", "time_embedding.fc1", "linear"),
    ("time_embedding.2", "time_embedding.fc2", "linear"),
    ("time_projection.1", "time_projection", "linear"),
    ("head.modulation", "head.modulation", "leading_1"),
    ("head.head", "head.proj", "linear"),
)
ACTION_MODULES = (
    ("state_encoder.layer1", "state_encoder.fc1", "category"),
    ("state_encoder.layer2", "state_encoder.fc2", "category"),
    ("action_encoder.W1", "action_encoder.fc1", "category"),
    ("action_encoder.W2", "action_encoder.fc2", "category"),
    ("action_encoder.W3", "action_encoder.fc3", "category"),
    ("action_decoder.layer1", "action_decoder.fc1", "category"),
    ("action_decoder.layer2", "action_decoder.fc2", "category"),
)
IMAGE_MODULES = (  # only in models with an image context
    ("img_emb.proj.0", "image_embedding.norm1", "layer_norm"),
    ("img_emb.proj.1", "image_embedding.fc1", "linear"),
    ("img_emb.proj.3", "image_embedding.fc2", "linear"),
    ("img_emb.proj.4", "image_embedding.norm2", "layer_norm"),
)
BLOCK_MODULES = (  # theirs under blocks.{i}., ours under blocks. (stacked) or final_block.
    ("modulation", "modulation", "leading_1"),
    *((f"self_attn.{p}", f"self_attn.{p}", "rotary_linear") for p in "qk"),
    *((f"self_attn.{p}", f"self_attn.{p}", "linear") for p in "vo"),
    ("self_attn.norm_q", "self_attn.q_norm", "rotary_norm"),
    ("self_attn.norm_k", "self_attn.k_norm", "rotary_norm"),
    ("norm3", "cross_norm", "layer_norm"),
    *((f"cross_attn.{p}", f"cross_attn.{p}", "linear") for p in "qkvo"),
    ("cross_attn.norm_q", "cross_attn.q_norm", "norm"),
    ("cross_attn.norm_k", "cross_attn.k_norm", "norm"),
    ("ffn.0", "mlp.fc1", "linear"),
    ("ffn.2", "mlp.fc2", "linear"),
)
IMAGE_BLOCK_MODULES = (
    ("cross_attn.k_img", "cross_attn.k_image", "linear"),
    ("cross_attn.v_img", "cross_attn.v_image", "linear"),
    ("cross_attn.norm_k_img", "cross_attn.k_image_norm", "norm"),
)


WAN = NameTable(VIDEO_MODULES, BLOCK_MODULES, IMAGE_MODULES, IMAGE_BLOCK_MODULES)
ACTIONS = NameTable(ACTION_MODULES, ())
DREAMZERO = dataclasses.replace(WAN, modules=VIDEO_MODULES + ACTION_MODULES)


def is_action_part(name: str) -> bool:
    """Whether a parameter is none of the video model's, by our name or DreamZero's."""
    return name.split(".")[0] in {ours.split(".")[0] for _, ours, _ in ACTION_MODULES}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of their tensors and where it lives in ours (`layer` is None where ours is not stacked)."""

    theirs: str
    ours: str
    layer: int | None
    transform: Transform
    read: bool = True  # whether ours is filled from it


def entries(table: NameTable, num_layers: int, has_image: bool) -> Iterator[Entry]:
    """Every tensor of a model of that size."""
    for theirs, ours, kind in table.modules + (table.image_modules if has_image else ()):
        yield from _module_entries(theirs, ours, kind, layer=None)
    for theirs, ours, kind in table.unread_modules:
        yield from (dataclasses.replace(e, read=False) for e in _module_entries(theirs, ours, kind, layer=None))
    block = table.block_modules + (table.image_block_modules if has_image else ())
    for i in range(num_layers):
        home, layer = ("final_block", None) if i == num_layers - 1 else ("blocks", i)
        for theirs, ours, kind in block:
            yield from _module_entries(f"blocks.{i}.{theirs}", f"{home}.{ours}", kind, layer)


LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


def is_adapter(theirs: str) -> bool:
    """Whether a name of theirs is an adapter's."""
    return theirs.endswith((LORA_A, LORA_B))


def with_adapters(found: Iterable[Entry], ours: Iterable[str]) -> Iterator[Entry]:
    """Entries and, behind a kernel that has an adapter among our names, the adapter's, as peft calls them."""
    for entry in found:
        yield entry
        linear, theirs = entry.ours.removesuffix(".kernel"), entry.theirs.removesuffix(".weight")
        if entry.ours.endswith(".kernel") and f"{linear}.lora_a" in ours:
            yield Entry(theirs + LORA_A, f"{linear}.lora_a", entry.layer, TRANSPOSE)
            yield Entry(theirs + LORA_B, f"{linear}.lora_b", entry.layer, entry.transform)


def _module_entries(theirs: str, ours: str, kind: str, layer: int | None) -> Iterator[Entry]:
    for their_suffix, our_suffix, transform in KINDS[kind]:
        yield Entry(theirs + their_suffix, ours + our_suffix, layer, transform)


def reference_shapes(shapes: Mapping[str, jax.ShapeDtypeStruct], head_dim: int, table: NameTable = DREAMZERO
                     ) -> dict[str, jax.ShapeDtypeStruct]:
    """Our abstract parameters -> the reference's name -> abstract tensor, without any data."""
    return {entry.theirs: their_shape(shapes, entry, head_dim) for entry in _entries_of(shapes, table)}


def their_shape(shapes: Mapping[str, jax.ShapeDtypeStruct], entry: Entry, head_dim: int
                ) -> jax.ShapeDtypeStruct:
    """Of one of their tensors, from our abstract parameters."""
    ours = shapes[entry.ours]
    one = jax.ShapeDtypeStruct(ours.shape if entry.layer is None else ours.shape[1:], ours.dtype)
    return jax.eval_shape(lambda x: entry.transform.to_theirs(x, head_dim), one)


def to_reference(params: Mapping[str, np.ndarray], head_dim: int, table: NameTable = DREAMZERO
                 ) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (reference name, numpy array in PyTorch layout), one tensor at a time.

    Args:
      params: our flat parameters, numpy or JAX arrays. Only the slice in flight is copied.
      head_dim: width of an attention head.
    Raises:
      ValueError: listing our tensors that the table lacks and those it misses, before anything is yielded.
    """
    return (_read(params, entry, head_dim) for entry in _entries_of(params, table))


def _read(params: Mapping[str, np.ndarray], entry: Entry, head_dim: int) -> tuple[str, np.ndarray]:
    ours = params[entry.ours]
    one = np.asarray(ours if entry.layer is None else ours[entry.layer])
    return entry.theirs, np.ascontiguousarray(entry.transform.to_theirs(one, head_dim))


def from_reference(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, jax.ShapeDtypeStruct],
                   head_dim: int, table: NameTable = DREAMZERO) -> dict[str, np.ndarray]:
    """Fills our parameters from the reference's tensors, read one at a time.

    Args:
      tensors: reference name -> array; a lazy mapping (safetensors_io.Weights) is read leaf by leaf.
      shapes: our abstract parameters; they decide the number of layers, the image context and the dtypes.
    Raises:
      ValueError: names missing or unexpected on either side, or the first tensor whose shape does not fit.
    """
    found = _entries_of(shapes, table)
    _same_names("the reference's tensors", [e.theirs for e in found], tensors)
    params = {name: np.empty(x.shape, x.dtype) for name, x in shapes.items()}
    for entry in (e for e in found if e.read):
        source = np.asarray(tensors[entry.theirs])
        expected = their_shape(shapes, entry, head_dim).shape
        if source.shape != expected:
            raise ValueError(f"{entry.theirs} (ours: {entry.ours}): expected shape {expected}, "
                             f"found {source.shape}")
        target = params[entry.ours] if entry.layer is None else params[entry.ours][entry.layer]
        target[...] = entry.transform.to_ours(source, head_dim)
    return params


def _entries_of(ours: Mapping[str, object], table: NameTable) -> list[Entry]:
    """The table for this set of our parameters; every one of them accounted for, none left over."""
    depths = {name: x.shape[0] for name, x in ours.items() if name.startswith("blocks.")}
    if len(set(depths.values())) > 1:
        raise ValueError(f"our parameters: blocks. must be stacked equally deep, found {depths}")
    has_image = any(name.startswith("image_embedding.") for name in ours)
    found = list(with_adapters(entries(table, 1 + max(depths.values(), default=0), has_image), ours))
    _same_names("our parameters", {e.ours for e in found}, ours)
    return found


def _same_names(what: str, expected, found) -> None:
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise ValueError(f"{what} do not fit the name table: missing {missing}, unexpected {unexpected}")
