"""Published weights -> our parameters: what fills what is decided and checked before any data is read.

Every tensor on both sides is accounted for: it is loaded, or fitted to another size by a given rule, or initialised
fresh by a rule of the format, or belongs to a component that is not the network; anything else is an error.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from world_model.layers.lora import ADAPTER
from world_model.weights import names
from world_model.weights.formats import Source
from world_model.weights.names import Entry
from world_model.weights.safetensors_io import WeightsError
from world_model.weights.streaming import Pieces

DTYPES = ("F32", "BF16", "F16")
FITS = ("slice", "pad_zero", "fresh")
UNREAD = "network that nothing reads"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where each of our parameters comes from."""

    loaded: dict[str, list[Entry]]  # ours -> of theirs, one a layer
    fresh: dict[str, str]  # ours -> why
    fitted: dict[str, str]  # ours -> how, where sizes differ; these are in `loaded` too
    apart: dict[str, int]  # component of theirs that is left where it is -> tensors

    def report(self) -> dict:
        """As JSON."""
        return {"tensors_loaded": sum(map(len, self.loaded.values())), "parameters_loaded": len(self.loaded),
                "fresh": self.fresh, "fitted": self.fitted, "left_in_source": self.apart}


def make_plan(source: Source, shapes: Mapping[str, jax.ShapeDtypeStruct], spec,
              fits: Mapping[str, str] | None = None) -> Plan:
    """Reads headers alone.

    Args:
      shapes: our abstract parameters; spec: the sizes they come from.
      fits: regular expression of our names -> slice | pad_zero | fresh, for tensors of another size.
    Raises:
      WeightsError: naming file, key, expected and found, on anything that is not accounted for.
    """
    source.check(source.directory, spec)
    entries = _entries(source, shapes, spec)
    covered = {entry.ours for entry in entries}
    fresh = {name: rule.why for name in shapes if name not in covered
             for rule in source.fresh if rule.applies(spec) and re.search(rule.pattern, name)}
    if unknown := sorted(shapes.keys() - covered - fresh.keys()):
        raise WeightsError(f"{source.directory}: nothing fills {unknown[0]} ({len(unknown)} such parameters) and no "
                           "rule of this format initialises it; is the config that of another model?")
    fitted = _fitted(source, entries, shapes, spec, dict(fits or {}))
    fresh |= {name: "of another size, by --fit" for name, how in fitted.items() if how == "fresh"}
    loaded: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.read and entry.ours not in fresh:
            loaded.setdefault(entry.ours, []).append(entry)
    unread = sum(not entry.read for entry in entries)
    return Plan(loaded, fresh, fitted, source.apart | ({UNREAD: unread} if unread else {}))


def _entries(source: Source, shapes, spec) -> list[Entry]:
    """The table at the size of our parameters; raises WeightsError unless it is exactly what was found."""
    found, layers = source.where.keys(), _layers(shapes)
    adapters = shapes if any(name.endswith(names.LORA_A) for name in found) else ()
    theirs = lambda image: list(names.with_adapters(names.entries(source.table, layers, image), adapters))
    entries, plain = theirs(bool(spec.image_dim)), theirs(False)
    image_only = {e.theirs for e in entries} - {e.theirs for e in plain}
    if not found & image_only and any(rule.applies(spec) and re.search(rule.pattern, "image_embedding.")
                                      for rule in source.fresh):
        entries = plain
    expected = {entry.theirs for entry in entries}
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        depth = len({m[1] for name in found if (m := re.match(r"blocks\.(\d+)\.", name))})
        raise WeightsError(
            f"{source.directory}: does not fit the config's model of {layers} layers, "
            f"{'with' if spec.image_dim else 'without'} an image branch, adapters of rank {spec.lora_rank} (the source "
            f"has {depth} layers): {_some('missing', missing)}{_some('unexpected', unexpected)}another base, family or "
            "--format? A checkpoint of adapters alone needs --base.")
    return entries


def _layers(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return 1 + max((x.shape[0] for name, x in shapes.items() if name.startswith("blocks.")), default=0)


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {what} ({shown}); " if keys else ""


def _fitted(source: Source, entries: Iterable[Entry], shapes, spec, fits: dict[str, str]) -> dict[str, str]:
    """{ours: how} where sizes differ. Raises WeightsError on a difference that no pattern allows."""
    fitted, used = {}, set()
    for entry in entries:
        shape, dtype = source.header(entry.theirs)
        expected = names.their_shape(shapes, entry, spec.head_dim).shape
        if dtype not in DTYPES:
            raise WeightsError(f"{source.place(entry.theirs)}: expected one of {', '.join(DTYPES)}, found {dtype}")
        if shape == expected:
            continue
        pattern = next((p for p in fits if re.search(p, entry.ours)), None)
        if pattern is None:
            raise WeightsError(
                f"{source.place(entry.theirs)} (ours: {entry.ours}): expected shape {expected}, found {shape}; use the "
                "config of these weights, or say what to do: --fit='PATTERN=slice|pad_zero|fresh'")
        used.add(pattern)
        how = fitted[entry.ours] = fits[pattern]
        wrong = {"slice": any(n > m for n, m in zip(expected, shape, strict=True)),
                 "pad_zero": any(n < m for n, m in zip(expected, shape, strict=True)), "fresh": False}[how]
        if wrong:
            raise WeightsError(f"{source.place(entry.theirs)}: {how} cannot make {expected} of {shape}")
    if unread := sorted(fits.keys() - used):
        raise WeightsError(f"--fit={unread[0]}={fits[unread[0]]}: no tensor of another size has such a name")
    return fitted


def pieces(source: Source, plan: Plan, shapes: Mapping[str, jax.ShapeDtypeStruct], head_dim: int,
           fresh: Callable[[str], np.ndarray]) -> dict[str, Pieces]:
    """Our parameters, to be read while they are written. fresh(name) gives an initial value."""
    made = {}
    for name, x in shapes.items():
        if name in plan.fresh:
            made[name] = Pieces(x.shape, np.dtype(x.dtype), lambda _, name=name: fresh(name), stacked=False)
            continue
        by_layer = {entry.layer: entry for entry in plan.loaded[name]}
        shape = x.shape if None in by_layer else x.shape[1:]

        def read(layer, by_layer=by_layer, shape=shape, dtype=x.dtype):
            entry = by_layer[layer]
            return fit(entry.transform.to_ours(source[entry.theirs], head_dim), shape, dtype)

        made[name] = Pieces(x.shape, np.dtype(x.dtype), read, stacked=None not in by_layer)
    return made


def read(source: Source, params: Mapping[str, jax.Array], spec) -> dict[str, np.ndarray]:
    """All parameters of a whole model, such as an export of ours; `params` gives their shapes."""
    source = dataclasses.replace(source, fresh=())
    shapes = {name: jax.ShapeDtypeStruct(x.shape, np.float32) for name, x in params.items()}
    found = pieces(source, make_plan(source, shapes, spec), shapes, spec.head_dim, fresh=lambda name: None)
    return {name: x.whole() for name, x in found.items()}


def fit(x: np.ndarray, shape: tuple[int, ...], dtype) -> np.ndarray:
    """The leading part of x along each axis, and zeros past its end."""
    x = x[tuple(slice(n) for n in shape)]
    if x.shape == shape:
        return np.ascontiguousarray(x, dtype)
    whole = np.zeros(shape, dtype)
    whole[tuple(slice(n) for n in x.shape)] = x
    return whole


def base_hash(source: Source, plan: Plan) -> str:
    """sha256 of what adapters are trained on: the tensors that are loaded, without action parts and adapters, as they
    are stored (names, dtypes, shapes and bytes, sorted by name)."""
    digest = hashlib.sha256()
    for theirs in sorted(entry.theirs for found in plan.loaded.values() for entry in found
                         if not names.is_action_part(entry.ours) and not ADAPTER.search(entry.ours)):
        shape, dtype = source.header(theirs)
        digest.update(f"{theirs} {dtype} {shape}".encode())
        digest.update(np.ascontiguousarray(source[theirs]).reshape(-1).view(np.uint8))
    return digest.hexdigest()
