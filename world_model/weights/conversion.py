"""Published weights -> our parameters: what fills what is decided and checked before any data is read.

Every tensor on both sides is accounted for: it is loaded, or fitted to another size by a given rule, or initialised
afresh by a rule of the format, or belongs to a component that is not the network; anything else is an error.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from world_model.layers.lora import ADAPTER
from world_model.weights import names
from world_model.weights.formats import OpenedWeights
from world_model.weights.names import Entry, NameTable, StackTable
from world_model.weights.safetensors_io import WeightsError
from world_model.weights.streaming import Pieces

DTYPES = ("F32", "BF16", "F16")
FITS = ("slice", "pad_zero", "fresh")
UNREAD = "network that nothing reads"

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where each of our parameters comes from."""

    loaded: dict[str, list[Entry]]  # native name -> entries, one a layer
    initialised: dict[str, str]  # native name -> why
    fitted: dict[str, str]  # native name -> how, where sizes differ; these are in `loaded` too
    left_in_source: dict[str, int]  # published component that is not read -> its tensors

    def report(self) -> dict:
        """The plan as JSON."""
        return {"tensors_loaded": sum(map(len, self.loaded.values())), "parameters_loaded": len(self.loaded),
                "fresh": self.initialised, "fitted": self.fitted, "left_in_source": self.left_in_source}


def make_plan(source: OpenedWeights, shapes: Shapes, spec: Any, fits: Mapping[str, str] | None = None) -> Plan:
    """Decides what fills our parameters; reads headers alone.

    Args:
      shapes: our abstract parameters.
      spec: the family's sizes; the format's check and rules read it, and `head_dim` is read here.
      fits: regular expression of native names -> slice | pad_zero | fresh, for tensors of another size.
    Raises:
      WeightsError: naming file, key, expected and found, on anything that is not accounted for.
    """
    source.check(source.directory, spec)
    source = _without_unneeded(source, shapes)
    entries = _entries(source, shapes, spec)
    covered = {entry.native for entry in entries}
    initialised = {name: rule.why for name in shapes if name not in covered
                   for rule in source.rules if rule.applies(spec) and re.search(rule.pattern, name)}
    if unknown := sorted(shapes.keys() - covered - initialised.keys()):
        raise WeightsError(f"{source.directory}: nothing fills {unknown[0]} ({len(unknown)} such parameters) and no "
                           "rule of this format initialises it; is the config that of another model?")
    fitted = _fitted(source, entries, shapes, spec.head_dim, dict(fits or {}))
    initialised |= {name: "of another size, by --fit" for name, how in fitted.items() if how == "fresh"}
    loaded: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.read and entry.native not in initialised:
            loaded.setdefault(entry.native, []).append(entry)
    unread = sum(not entry.read for entry in entries)
    return Plan(loaded, initialised, fitted, source.left_in_source | ({UNREAD: unread} if unread else {}))


def _without_unneeded(source: OpenedWeights, shapes: Shapes) -> OpenedWeights:
    """The source without tensors of optional modules that our model lacks and does not need."""
    left, where = dict(source.left_in_source), dict(source.where)
    for group in source.table.optional:
        if not group.needed and not group.is_in(shapes):
            unneeded = {entry.published for entry in names.module_entries(group.modules)} & where.keys()
            where = {name: place for name, place in where.items() if name not in unneeded}
            left |= {group.what: len(unneeded)} if unneeded else {}
    return dataclasses.replace(source, where=where, left_in_source=left)


def _entries(source: OpenedWeights, shapes: Shapes, spec: Any) -> list[Entry]:
    """The table at the size of our parameters; raises WeightsError unless it is exactly what was found."""
    found = source.where.keys()
    adapters = shapes if any(map(names.is_adapter, found)) else ()
    entries = _with_adapters(_needed(source, shapes, adapters, spec), shapes, adapters)
    expected = {entry.published for entry in entries}
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise WeightsError(f"{source.directory}: does not fit the config's {_described(source, shapes)}: "
                           f"{_some('missing', missing)}{_some('unexpected', unexpected)}another base, family or "
                           "--format? A checkpoint of adapters alone needs --base.")
    return entries


def _with_adapters(table: NameTable, shapes: Shapes, adapters: Collection[str]) -> list[Entry]:
    return list(names.with_adapters(names.entries(table, shapes), adapters))


def _needed(source: OpenedWeights, shapes: Shapes, adapters: Collection[str], spec: Any) -> NameTable:
    """The table without optional modules of which the source holds nothing, where a rule initialises them."""
    table = source.table
    for group in table.optional:
        without = dataclasses.replace(table, optional=tuple(other for other in table.optional if other is not group))
        plain = {entry.published for entry in _with_adapters(without, shapes, adapters)}
        absent = all(entry.published in plain or entry.published not in source.where
                     for entry in _with_adapters(table, shapes, adapters))
        if absent and any(rule.applies(spec) and re.search(rule.pattern, group.prefix) for rule in source.rules):
            table = without
    return table


def _described(source: OpenedWeights, shapes: Shapes) -> str:
    """The sizes of our model and, in brackets, of the source."""
    table, rank = source.table, next((x.shape[-1] for name, x in shapes.items() if name.endswith(".lora_a")), 0)
    native = _depths(table, lambda stack: stack.depth(shapes))
    published = _depths(table, lambda stack: stack.published_depth(source.where))
    groups = "".join(f"{'with' if group.is_in(shapes) else 'without'} {group.what}, " for group in table.optional)
    return f"model of {native}, {groups}adapters of rank {rank} (the source has {published})"


def _depths(table: NameTable, depth: Callable[[StackTable], int]) -> str:
    told = [f"{depth(stack)} layers" + (f" of {stack.native}*" if len(table.stacks) > 1 else "")
            for stack in table.stacks]
    return " and ".join(told) or "no layers"


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {what} ({shown}); " if keys else ""


def _fitted(source: OpenedWeights, entries: Iterable[Entry], shapes: Shapes, head_dim: int, fits: dict[str, str]
            ) -> dict[str, str]:
    """{native name: how} where sizes differ. Raises WeightsError on a difference that no pattern allows."""
    fitted, used = {}, set()
    for entry in entries:
        shape, dtype = source.header(entry.published)
        expected = names.published_shape(shapes, entry, head_dim).shape
        if dtype not in DTYPES:
            raise WeightsError(f"{source.place(entry.published)}: expected one of {', '.join(DTYPES)}, found {dtype}")
        if shape == expected:
            continue
        pattern = next((p for p in fits if re.search(p, entry.native)), None)
        if pattern is None:
            raise WeightsError(
                f"{source.place(entry.published)} (ours: {entry.native}): expected shape {expected}, found {shape}; "
                "use the config of these weights, or say what to do: --fit='PATTERN=slice|pad_zero|fresh'")
        used.add(pattern)
        how = fitted[entry.native] = fits[pattern]
        wrong = {"slice": any(n > m for n, m in zip(expected, shape, strict=True)),
                 "pad_zero": any(n < m for n, m in zip(expected, shape, strict=True)), "fresh": False}[how]
        if wrong:
            raise WeightsError(f"{source.place(entry.published)}: {how} cannot make {expected} of {shape}")
    if unread := sorted(fits.keys() - used):
        raise WeightsError(f"--fit={unread[0]}={fits[unread[0]]}: no tensor of another size has such a name")
    return fitted


def pieces(source: OpenedWeights, plan: Plan, shapes: Shapes, head_dim: int, initial: Callable[[str], np.ndarray]
           ) -> dict[str, Pieces]:
    """Our parameters, to be read while they are written. initial(name) gives the value of one that a rule
    initialises."""
    params = {}
    for name, x in shapes.items():
        if name in plan.initialised:
            def read_initial(layer, name=name):
                return initial(name)

            params[name] = Pieces(x.shape, np.dtype(x.dtype), read_initial, stacked=False)
            continue
        by_layer = {entry.layer: entry for entry in plan.loaded[name]}
        shape = x.shape if None in by_layer else x.shape[1:]

        def read(layer, by_layer=by_layer, shape=shape, dtype=x.dtype):
            entry = by_layer[layer]
            return fit(entry.transform.to_native(source[entry.published], head_dim), shape, dtype)

        params[name] = Pieces(x.shape, np.dtype(x.dtype), read, stacked=None not in by_layer)
    return params


def read(source: OpenedWeights, params: Mapping[str, jax.Array], spec: Any) -> dict[str, Pieces]:
    """All parameters of a whole model, such as an export of ours, each read when it becomes an array; `params` gives
    their shapes."""
    source = dataclasses.replace(source, rules=())
    shapes = {name: jax.ShapeDtypeStruct(x.shape, np.float32) for name, x in params.items()}
    return pieces(source, make_plan(source, shapes, spec), shapes, spec.head_dim, initial=lambda name: None)


def fit(x: np.ndarray, shape: tuple[int, ...], dtype) -> np.ndarray:
    """The leading part of x along each axis, and zeros past its end."""
    x = x[tuple(slice(n) for n in shape)]
    if x.shape == shape:
        return np.ascontiguousarray(x, dtype)
    whole = np.zeros(shape, dtype)
    whole[tuple(slice(n) for n in x.shape)] = x
    return whole


def base_hash(source: OpenedWeights, plan: Plan) -> str:
    """sha256 of what adapters are trained on: the tensors that are loaded, without the format's parts beside the base
    and without adapters, as they are stored (names, dtypes, shapes and bytes, sorted by name)."""
    digest = hashlib.sha256()
    for name in sorted(entry.published for found in plan.loaded.values() for entry in found
                       if not re.search(source.beside_base, entry.native) and not ADAPTER.search(entry.native)):
        shape, dtype = source.header(name)
        digest.update(f"{name} {dtype} {shape}".encode())
        digest.update(np.ascontiguousarray(source[name]).reshape(-1).view(np.uint8))
    return digest.hexdigest()
