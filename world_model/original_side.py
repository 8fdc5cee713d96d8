"""What runs in an original project's interpreter, for the scripts that do (original.py asks them).

    PYTHON original_side.py SCRIPT CHECKOUT ARGUMENTS... WORK

runs SCRIPT, in which this module is known though nothing of ours is installed there: it needs torch and numpy alone.
WORK/inputs.npz is what is asked, WORK/found.npz what is answered. Frozen encoders, which no export holds, are replaced
by stand-ins of a few lines; what they were given and gave is told, so that the rest can be computed again.
"""

import importlib.abc
import importlib.machinery
import runpy
import sys
import types
from collections.abc import Mapping
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def numpy(x) -> np.ndarray:
    """x as float32 on the host."""
    return x.detach().float().cpu().numpy().copy()


def read_inputs(work: str) -> dict[str, np.ndarray]:
    """Reads WORK/inputs.npz."""
    with np.load(f"{work}/inputs.npz") as file:
        return {name: file[name] for name in file.files}


def part(inputs: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The inputs whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): x for name, x in inputs.items() if name.startswith(prefix)}


def write_results(work: str, missing, unexpected, **found: np.ndarray) -> None:
    """Writes what was found, and the names of tensors that the original missed or had no place for."""
    np.savez(f"{work}/found.npz", missing=np.array(sorted(missing), str), unexpected=np.array(sorted(unexpected), str),
             **found)


def exact_attention(q, k, v, *_, **__):
    """Attention [B, L, n, d] without rounding, on any device."""
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), v)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that an original imports and a forward pass does not need: where they are not installed, every attribute
    is a mock. Goes to the end of sys.meta_path."""

    def __init__(self, *names: str):
        self.names = names

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__name__, module.__file__ = spec, [], spec.name, None
        return module

    def exec_module(self, module):
        """See `Loader`."""


def script(path: str) -> types.SimpleNamespace:
    """What a script of this kind defines, for others that run where nothing of ours is installed."""
    return types.SimpleNamespace(**runpy.run_path(path))


def byte_tokens(texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) int64 [B, length]: bytes as tokens."""
    rows = [list(text.encode())[:length] for text in texts]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, (torch.arange(length) < torch.tensor([[len(row)] for row in rows])).long()


def text_features(ids: torch.Tensor, width: int) -> torch.Tensor:
    """Features [..., width] of token ids."""
    return torch.sin((1.0 + ids.float())[..., None] * (1 + torch.arange(width, device=ids.device)) / 7)


def latents(parts: list[torch.Tensor], channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Latents [B, channels, F, *size] of a video that comes in parts [B, 3, f, H, W], one per latent frame: means over
    patches, mixed into channels."""
    mix = torch.sin(3.0 * torch.arange(3 * channels)).unflatten(0, (channels, 3)).to(parts[0].device)
    small = torch.stack([nn.functional.adaptive_avg_pool2d(x.float().mean(2), size) for x in parts], 2)
    return torch.einsum("zc,bcfhw->bzfhw", mix, small)


if __name__ == "__main__":
    sys.modules |= {"world_model": types.ModuleType("world_model"), "world_model.original_side": sys.modules[__name__]}
    vars(sys.modules["world_model"])["original_side"] = sys.modules[__name__]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
