"""Published names and layouts of parameters, and ours, as one table that is read in both directions.

A published model has PyTorch's layouts (transforms.py) and tensors of its own for every layer. Ours, the native side,
keeps the layers of a stack in one array with a leading axis; the last layer may stand apart from it. A family's tables
are in its folder.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import jax
import numpy as np

from world_model.weights.transforms import KINDS, TRANSPOSE, Transform

Modules = tuple[tuple[str, str, str], ...]  # published name, native name, kind: a key of transforms.KINDS


@dataclasses.dataclass(frozen=True)
class StackTable:
    """Names of one stack of layers."""

    published: str  # prefix of layer i, such as "blocks.{i}."
    native: str  # prefix of the stacked parameters, such as "blocks."
    modules: Modules  # a layer's modules, named behind these prefixes
    last: str | None = None  # native prefix of a last layer that stands apart; None: all layers are stacked

    def depth(self, params: Mapping[str, jax.ShapeDtypeStruct]) -> int:
        """The number of layers of a model with these parameters. Raises ValueError where their stack is uneven."""
        depths = {name: x.shape[0] for name, x in params.items() if name.startswith(self.native)}
        if len(set(depths.values())) > 1:
            raise ValueError(f"our parameters: {self.native} must be stacked equally deep, found {depths}")
        return max(depths.values(), default=0) + (self.last is not None)

    def published_depth(self, published: Iterable[str]) -> int:
        """How many layers have a tensor among published names."""
        pattern = re.compile(re.escape(self.published).replace(re.escape("{i}"), r"(\d+)"))
        return len({match[1] for name in published if (match := pattern.match(name))})

    def place(self, layer: int, depth: int) -> tuple[str, int | None]:
        """(native prefix of a layer, its index in the stack or None)."""
        return (self.last, None) if self.last is not None and layer == depth - 1 else (self.native, layer)


@dataclasses.dataclass(frozen=True)
class OptionalModules:
    """Modules that only some models have."""

    what: str  # in messages, such as "an image branch"
    prefix: str  # a native one; a model has these modules where one of its parameters begins with it
    modules: Modules = ()
    layer_modules: Mapping[str, Modules] = dataclasses.field(default_factory=dict)  # by a stack's native prefix
    needed: bool = True  # False: weights that have the modules also fill a model without them

    def is_in(self, params: Iterable[str]) -> bool:
        """Whether a model with parameters of these native names has the modules."""
        return any(name.startswith(self.prefix) for name in params)


@dataclasses.dataclass(frozen=True)
class NameTable:
    """Every module of a published model."""

    modules: Modules  # outside the stacks
    stacks: tuple[StackTable, ...] = ()
    optional: tuple[OptionalModules, ...] = ()
    unread_modules: Modules = ()  # published and read by nobody: a copy of ours when written, left alone when read


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published tensor and where it lives in our parameters."""

    published: str
    native: str
    layer: int | None  # index in a stacked parameter
    transform: Transform
    read: bool = True  # whether our parameter is filled from it
    part: tuple[int, int] | None = None  # (i, n): it is the i-th of n equal parts of our last axis

    def slice_of(self, native):
        """What this tensor is of our parameter, before the transform."""
        native = native if self.layer is None else native[self.layer]
        if self.part is None:
            return native
        width = native.shape[-1] // self.part[1]
        return native[..., self.part[0] * width:(self.part[0] + 1) * width]


def entries(table: NameTable, params: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[Entry]:
    """Every published tensor of a model, without adapters. params: ours, arrays or abstract; they decide on the depth
    of each stack and on the optional modules."""
    groups = [group for group in table.optional if group.is_in(params)]
    yield from module_entries(table.modules)
    for group in groups:
        yield from module_entries(group.modules)
    yield from (dataclasses.replace(entry, read=False) for entry in module_entries(table.unread_modules))
    for stack in table.stacks:
        modules = sum((group.layer_modules.get(stack.native, ()) for group in groups), stack.modules)
        depth = stack.depth(params)
        for i in range(depth):
            native, layer = stack.place(i, depth)
            yield from module_entries(modules, stack.published.format(i=i), native, layer)


def module_entries(modules: Modules, published: str = "", native: str = "", layer: int | None = None
                   ) -> Iterator[Entry]:
    """The tensors of modules whose names begin so."""
    for published_name, native_name, kind in modules:
        for published_suffix, native_suffix, transform in KINDS[kind]:
            yield Entry(published + published_name + published_suffix, native + native_name + native_suffix, layer,
                        transform)


LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


def is_adapter(published: str) -> bool:
    """Whether a published name is an adapter's."""
    return published.endswith((LORA_A, LORA_B))


def with_adapters(found: Iterable[Entry], native: Collection[str]) -> Iterator[Entry]:
    """Entries and, behind a kernel that has an adapter among our names, the adapter's, as peft calls them."""
    for entry in found:
        yield entry
        linear, published = entry.native.removesuffix(".kernel"), entry.published.removesuffix(".weight")
        if entry.native.endswith(".kernel") and f"{linear}.lora_a" in native:
            yield Entry(published + LORA_A, f"{linear}.lora_a", entry.layer, TRANSPOSE)
            yield Entry(published + LORA_B, f"{linear}.lora_b", entry.layer, entry.transform)


def published_shapes(shapes: Mapping[str, jax.ShapeDtypeStruct], head_dim: int, table: NameTable
                     ) -> dict[str, jax.ShapeDtypeStruct]:
    """Our abstract parameters -> published name -> abstract tensor, without any data."""
    return {entry.published: published_shape(shapes, entry, head_dim) for entry in _entries_of(shapes, table)}


def published_shape(shapes: Mapping[str, jax.ShapeDtypeStruct], entry: Entry, head_dim: int) -> jax.ShapeDtypeStruct:
    """The shape of one published tensor, from our abstract parameters."""
    return jax.eval_shape(lambda x: entry.transform.to_published(entry.slice_of(x), head_dim), shapes[entry.native])


def to_published(params: Mapping[str, np.ndarray], head_dim: int, table: NameTable
                 ) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (published name, numpy array in PyTorch layout), one tensor at a time.

    Args:
      params: our flat parameters, NumPy or JAX arrays, or what becomes one when asked (checkpoint_reader.StoredArray).
        Only the slice in flight is copied.
      head_dim: width of an attention head.
    Raises:
      ValueError: listing our tensors that the table lacks and those it misses, before anything is yielded.
    """
    found = sorted(_entries_of(params, table), key=lambda entry: entry.native)  # a stack's layers one after the other
    return (published_tensor(params, entry, head_dim) for entry in found)


def published_tensor(params: Mapping[str, np.ndarray], entry: Entry, head_dim: int) -> tuple[str, np.ndarray]:
    """(name, numpy array) of one published tensor, from our parameters."""
    one = np.asarray(entry.slice_of(params[entry.native]))
    return entry.published, np.ascontiguousarray(entry.transform.to_published(one, head_dim))


def from_published(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, jax.ShapeDtypeStruct], head_dim: int,
                   table: NameTable) -> dict[str, np.ndarray]:
    """Fills our parameters from published tensors, read one at a time.

    Args:
      tensors: published name -> array; a lazy mapping (safetensors_io.Weights) is read leaf by leaf.
      shapes: our abstract parameters; they decide on the table's entries and the dtypes.
    Raises:
      ValueError: names missing or unexpected on either side, or the first tensor whose shape does not fit.
    """
    found = _entries_of(shapes, table)
    _same_names("the published tensors", [entry.published for entry in found], tensors)
    params = {name: np.empty(x.shape, x.dtype) for name, x in shapes.items()}
    for entry in (entry for entry in found if entry.read):
        source = np.asarray(tensors[entry.published])
        expected = published_shape(shapes, entry, head_dim).shape
        if source.shape != expected:
            raise ValueError(f"{entry.published} (ours: {entry.native}): expected shape {expected}, "
                             f"found {source.shape}")
        entry.slice_of(params[entry.native])[...] = entry.transform.to_native(source, head_dim)
    return params


def _entries_of(params: Mapping[str, jax.ShapeDtypeStruct], table: NameTable) -> list[Entry]:
    """The table for this set of our parameters; every one of them is accounted for, none is left over."""
    found = list(with_adapters(entries(table, params), params))
    _same_names("our parameters", {entry.native for entry in found}, params)
    return found


def _same_names(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise ValueError(f"{what} do not fit the name table: missing {missing}, unexpected {unexpected}")
