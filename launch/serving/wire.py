"""The wire form: msgpack with numeric numpy arrays, as openpi-client's msgpack_numpy writes and reads it.

An array is a map {b"__ndarray__": true, b"data", b"dtype", b"shape"}, a numpy scalar {b"__npgeneric__": true, b"data",
b"dtype"}. Dtypes come from a table, sizes are checked before anything is made of them: no objects, no pickle. A message
holds at most MAX_CONTAINERS maps and lists of at most MAX_ITEMS each: a hostile one costs no more than its bytes.
"""

import itertools
import math

import msgpack
import numpy as np

DTYPES = {name: np.dtype(name) for name in (
    "|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")}
MAX_DIMENSIONS = 8
MAX_ITEMS = 256  # items of a map or a list
MAX_CONTAINERS = 1024  # maps and lists of a message, hence its depth too
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"


class WireError(ValueError):
    """A message that cannot be read; says what is wrong with it."""


def pack(message) -> bytes:
    """Python values and numeric arrays. Raises TypeError on anything else."""
    return msgpack.packb(message, default=_to_wire)


def unpack(data: bytes):
    """The inverse. Arrays are read-only views of the message. Raises WireError."""
    containers = itertools.count(1)

    def counted(value):
        if next(containers) > MAX_CONTAINERS:
            raise WireError(f"the message holds more than {MAX_CONTAINERS} maps and lists")
        return _from_wire(value) if isinstance(value, dict) else value

    try:
        return msgpack.unpackb(data, object_hook=counted, list_hook=counted, ext_hook=_no_extension,
                               strict_map_key=True, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS)
    except WireError:
        raise
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"the message is not msgpack as it is read here: {str(error)[:200] or type(error).__name__}") \
            from error


def _to_wire(value):
    if isinstance(value, np.ndarray | np.generic):
        dtype = value.dtype.newbyteorder("<")
        if dtype.str not in DTYPES:
            raise TypeError(f"an array of {value.dtype} cannot be sent")
        if isinstance(value, np.generic):
            return {_SCALAR: True, b"data": value.item(), b"dtype": dtype.str}
        return {_ARRAY: True, b"data": value.astype(dtype, copy=False).tobytes(), b"dtype": dtype.str,
                b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _from_wire(value: dict):
    if _ARRAY in value:
        return _array(value)
    if _SCALAR in value:
        return _scalar(value)
    return value


def _array(value: dict) -> np.ndarray:
    _check_keys(value, {_ARRAY, b"data", b"dtype", b"shape"})
    dtype, shape, data = _dtype(value[b"dtype"]), value[b"shape"], value[b"data"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or any(
            type(size) is not int or size < 0 for size in shape):
        raise WireError(f"an array's shape should be a list of at most {MAX_DIMENSIONS} sizes, found {str(shape)[:80]}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise WireError(f"an array {dtype} {shape} needs {math.prod(shape) * dtype.itemsize} bytes of data, "
                        f"found {found}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(value: dict):
    """A number or, where numpy held a text, a text."""
    _check_keys(value, {_SCALAR, b"data", b"dtype"})
    data = value[b"data"]
    if isinstance(data, str):
        return data
    if not isinstance(data, bool | int | float):
        raise WireError(f"a numpy scalar holds {type(data).__name__}")
    try:
        return _dtype(value[b"dtype"]).type(data)
    except OverflowError as error:
        raise WireError(f"a numpy scalar {value[b'dtype']} cannot hold {str(data)[:40]}") from error


def _dtype(name) -> np.dtype:
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"arrays of dtype {str(name)[:40]!r} are not accepted; these are: {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_keys(value: dict, keys: set) -> None:
    if value.keys() != keys:
        raise WireError(f"an array on the wire has the keys {sorted(keys)}, found {str(sorted(map(str, value)))[:200]}")


def _no_extension(code: int, _: bytes):
    raise WireError(f"msgpack extension type {code} is not accepted")
