"""Loads an export of `launch.export` into PyTorch, strictly."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from world_model import kinds
from world_model.attention.visibility import get_table
from world_model.batch import Layout
from world_model.families.dreamzero.torch.network import DreamZero
from world_model.families.dreamzero.torch.runtime import Runtime
from world_model.families.dreamzero.visibility import TABLES
from world_model.families.dreamzero.weights.formats import CONFIG, LORA_LEVEL, PREFIX, ZERO_IMAGE_BRANCH
from world_model.weights.names import LORA_A, LORA_B
from world_model.weights.safetensors_io import Weights
from world_model.weights.tensor_files import SPELLING, WeightsError, read_json


def load(directory: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Runtime, dict]:
    """Loads an export of `launch.export`, and the settings of DreamZeroTorchSampler that it recommends. dtype: to
    compute in, whatever the file's is.

    Raises WeightsError naming file and key where anything is missing, left over or of another shape or dtype.
    """
    settings, weights = read_config(directory), Weights(directory)
    with torch.device("meta"):
        expected = DreamZero(**settings["network"]).state_dict()
    read = lora_tensors if settings["lora_scale"] else plain_tensors
    network = load_network(read(weights, expected, settings), settings["network"]).to(dtype)
    layout = kinds.make(Layout, settings["layout"], f"{directory}/config.json: layout")
    table, rollout_table = (get_table(settings[name], TABLES) for name in ("visibility", "rollout_visibility"))
    runtime = Runtime(network.to(device), layout, table, rollout_table, settings["window_frames"])
    return runtime, settings["rollout"]


def read_config(directory: str | Path) -> dict:
    """Our part of an export's config.json. Raises WeightsError where there is none."""
    config = Path(directory) / "config.json"
    found = read_json(config, CONFIG, "a wamax export has its configuration there")
    if "wamax" not in found:
        raise WeightsError(f"{config}: expected the configuration of a wamax export, found none")
    return found["wamax"]


def plain_tensors(weights: Weights, expected: Mapping[str, Tensor], settings: dict) -> dict[str, np.ndarray]:
    """All in float32. Raises WeightsError unless names, shapes and dtypes are exactly the network's."""
    listed = {PREFIX + name: (tuple(x.shape), SPELLING[settings["dtype"]]) for name, x in expected.items()}
    weights.check(listed | _zeros(weights, settings))
    return {name: weights[PREFIX + name].astype(np.float32) for name in expected}


def lora_tensors(weights: Weights, expected: Mapping[str, Tensor], settings: dict) -> dict[str, np.ndarray]:
    """All in float32, adapters merged into the weights that they belong to; as strict."""
    prefix, stored = PREFIX + LORA_LEVEL, SPELLING[settings["dtype"]]
    listed = {prefix + name: (tuple(x.shape), stored) for name, x in expected.items()}
    adapted = [key.removesuffix(LORA_A) for key in weights if key.endswith(LORA_A)]
    for linear in adapted:
        rank, weight = weights.headers[linear + LORA_A][0][0], linear.removeprefix(prefix) + ".weight"
        outputs, inputs = expected[weight].shape if weight in expected else (0, 0)
        listed |= {linear + LORA_A: ((rank, inputs), stored), linear + LORA_B: ((outputs, rank), stored)}
    weights.check(listed | _zeros(weights, settings))
    tensors = {name: weights[prefix + name].astype(np.float32) for name in expected}
    for linear in adapted:
        a, b = (weights[linear + part].astype(np.float32) for part in (LORA_A, LORA_B))
        tensors[linear.removeprefix(prefix) + ".weight"] += np.float32(settings["lora_scale"]) * (b @ a)
    return tensors


def _zeros(weights: Weights, settings: dict) -> dict:
    """Headers of the image branch of zeros that a model without one may be written with."""
    if settings["network"]["image_dim"]:
        return {}
    return {key: header for key, header in weights.headers.items()
            if re.match(ZERO_IMAGE_BRANCH, key) and not weights[key].any()}


def load_network(tensors: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> DreamZero:
    """A network of `sizes` (DreamZero's arguments) with `tensors` under the reference's names, strictly.

    Raises RuntimeError listing names missing or unexpected and shapes that differ.
    """
    with torch.device("meta"):
        model = DreamZero(**sizes)
    state = {name: torch.from_numpy(np.require(x, requirements="W")) for name, x in tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()
