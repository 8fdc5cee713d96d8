"""The fields of a tf.train.Example as TFDS writes episodes: columns of numbers or bytes with a row for each step.

TFDS could decode steps too, but one by one; reading whole columns is 20 times faster. Its own reader of columns does
not know lists of a fixed length, and reads every field.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from data_pipelines.episode import BadEpisode
from world_model import kinds

_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # keys of features.json, today's and former ones


def check_classes(features: bytes, where: str) -> None:
    """Raises ValueError where the content of a features.json names a class that is not one of TFDS's own features: TFDS
    imports what is named there, and an import runs code."""
    import tensorflow_datasets as tfds

    known = {name for name in tfds.features.FeatureConnector._registered_features
             if name.startswith("tensorflow_datasets.core.features.")}
    for name in _named(kinds.parse(features, kinds.anything, where)):
        if name not in known:
            raise ValueError(f"{where} names the class {name!r}, which is none of the features of tensorflow_datasets: "
                             f"what is not its own is never imported")


def _named(value) -> Iterable[str]:
    """The classes that a value of features.json names, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield from (str(value[key]) for key in _CLASS_KEYS if key in value)
    for each in inner:
        yield from _named(each)


def parse(record: bytes, fields: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """The asked fields of a record, by name.

    fields: name "a/b" -> (shape, dtype) as TFDS's `TensorInfo` has them; None in a shape is a length that the record
    tells. Raises DecodeError where the record is none, KeyError where it lacks a field, and ValueError where the rows
    of one are not alike.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    stored = tf_example_pb2.Example.FromString(record).features.feature
    return {name: _column(stored, name, shape, dtype) for name, (shape, dtype) in fields.items()}


def _column(stored, name: str, shape: tuple, dtype) -> np.ndarray:
    lists = name if name in stored else f"{name}/ragged_flat_values"
    if lists not in stored:
        raise KeyError(f"the record has no {name!r}")
    kind = stored[lists].WhichOneof("kind")
    values = _array(getattr(stored[lists], kind).value if kind else [], dtype)
    if lists == name and None not in shape:
        return values.reshape(shape)
    rows = [_array(stored[key].int64_list.value, np.int64) for key in _row_lengths(stored, name)]
    if any(len(set(lengths.tolist())) > 1 for lengths in rows):
        raise ValueError(f"the rows of {name!r} have {sorted(set(rows[0].tolist()))} values")
    inner = math.prod(size for size in shape if size is not None)
    steps = len(rows[0]) if rows else len(values) // max(inner, 1)
    return values.reshape(steps, *_inner_shape(shape[1:], len(values) // max(steps, 1)))


def _row_lengths(stored, name: str) -> list[str]:
    found = []
    while (key := f"{name}/ragged_row_lengths_{len(found)}") in stored:
        found.append(key)
    return found


def _inner_shape(shape: tuple, values: int) -> tuple[int, ...]:
    """The shape of a row of so many values: as told where that says it, otherwise flat."""
    unknown = [size for size in shape if size is None]
    if not unknown:
        return shape
    known = math.prod(size for size in shape if size is not None)
    if len(unknown) > 1 or not known:
        return (values,)
    return tuple(values // known if size is None else size for size in shape)


def _array(values, dtype) -> np.ndarray:
    """One dimension; texts and pictures stay bytes, zeros at their ends too."""
    if np.dtype(dtype).kind in "OSU":
        out = np.empty(len(values), object)
        out[:] = list(values)
        return out
    return np.array(values, dtype)


def plain(value: np.ndarray):
    """A value of the metadata as JSON has it; a text that is not UTF-8 is written as Python shows it."""
    value = value.tolist()
    if isinstance(value, list):
        return [plain(np.array(each, object)) for each in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def numbers(columns: dict[str, np.ndarray], fields: Sequence[str], where: str) -> np.ndarray | None:
    """Numeric fields side by side, float32 [length, dims]."""
    parts = []
    for field in fields:
        try:
            rows = columns[field].astype(np.float32)
        except (ValueError, TypeError) as error:
            raise BadEpisode(f"{where}: {field} does not hold numbers: {error}") from error
        parts.append(rows.reshape(len(rows), -1))
    return np.concatenate(parts, 1) if parts else None
