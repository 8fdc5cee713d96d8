"""One file of named tensors: safetensors, or, where that is allowed, a pickle of torch's.

Both are opened lazily and have the interface of `safetensors.safe_open`: keys(), get_tensor(name), and get_slice(name)
with get_shape() and get_dtype(), the latter in safetensors' own spelling ("BF16").
"""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from world_model import kinds

SAFE = ".safetensors"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
SPELLING = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # torch's dtypes; others keep their names


class WeightsError(ValueError):
    """A file or directory of weights is not what it should be; the message names file, key, expected and found."""


def read_json(path: Path, rule: kinds.Rule, missing: str = ""):
    """The value in a JSON file. Raises WeightsError where it is missing (the message ends with `missing`, what to do),
    cannot be read, is no JSON or breaks the rule."""
    try:
        return kinds.read(path, rule)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: missing{missing and '; '}{missing}") from error
    except (OSError, ValueError) as error:
        raise WeightsError(str(error)) from error


def open_tensors(path: Path, allow_pickle: bool = False):
    """Opens a file as a context manager. Raises WeightsError where it is damaged, or no safetensors and pickles are not
    allowed.

    allow_pickle: read others by torch's weights_only unpickler, which makes tensors and nothing else.
    """
    if path.suffix != SAFE:
        if not allow_pickle:
            raise WeightsError(f"{path}: not safetensors. A pickle can run code: convert it to safetensors, or allow "
                               "pickles (encoders.allow_pickle = True in a config, --allow_pickle of "
                               "launch.import_weights), and torch's weights_only unpickler reads it")
        return _Pickle(path)
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise WeightsError(f"{path}: truncated or not safetensors ({path.stat().st_size} bytes found): {error}; fetch "
                           "it again") from error


def read_tensor(file, name: str, path: Path) -> np.ndarray:
    """A tensor of an opened file. Raises WeightsError where it is of a type that numpy does not have."""
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError) as error:
        raise WeightsError(f"{path}: {name}: {file.get_slice(name).get_dtype()} is not read here: convert it to one of "
                           f"{', '.join(SPELLING.values())}") from error


class _Pickle:
    """The tensors of a torch file, mapped into memory while it is open."""

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError as error:
            raise WeightsError(f"{path}: reading a pickle needs the extra `torch`") from error
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # torch raises many kinds
            raise WeightsError(f"{path}: not a file of plain tensors (torch weights_only): {error}") from error
        if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
            raise WeightsError(f"{path}: expected a dict of names and tensors, found {type(found).__name__}")
        self._tensors = found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._tensors = {}

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self._tensors)

    def get_tensor(self, name: str) -> np.ndarray:
        """The tensor as a numpy array; numpy has no bfloat16 of its own."""
        import torch

        tensor = self._tensors[name].detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def get_slice(self, name: str) -> "_Header":
        """The tensor's shape and dtype, without its data."""
        return _Header(self._tensors[name])


class _Header:
    def __init__(self, tensor):
        self._shape, self._dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        return SPELLING.get(self._dtype, self._dtype)
