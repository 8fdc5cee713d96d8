"""Runs an export with --format=wan in somebody's checkout of the original Wan2.1 or Wan2.2, by their own interpreter.

    PYTHON wan_original_run.py CHECKOUT EXPORT WORK

Needs that project's packages (flash-attn may be missing) and nothing of ours. WORK/inputs.npz is what
wan_original_check.py asks, WORK/found.npz what this answers: what the network's loader left out, and its forward in
float32 with exact softmax.
"""

import importlib
import inspect
import sys
import types
from pathlib import Path

import numpy as np
import torch


def exact(q, k, v, *_, **__):
    """Attention [B, L, n, d] without rounding, on any device."""
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), v)


def original(checkout: str):
    """Its module of the network; its packages import what generating a video needs."""
    for name in ("wan", "wan.modules"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(checkout, *name.split(".")))]
    found = importlib.import_module("wan.modules.model")
    vars(found)["flash_attention"] = exact
    return found


@torch.no_grad()
def main(checkout: str, export: str, work: str) -> None:
    """See the module."""
    network, told = original(checkout).WanModel.from_pretrained(
        export, torch_dtype=torch.float32, output_loading_info=True)
    with np.load(f"{work}/inputs.npz") as file:
        given = {name: torch.from_numpy(file[name]) for name in file.files}
    _, frames, height, width = given["latents"].shape
    more = {"clip_fea": given["image"][None]} if "clip_fea" in inspect.signature(network.forward).parameters else {}
    if "condition" in given:
        more["y"] = [given["condition"]]
    out = network.eval()([given["latents"]], t=given["timestep"], context=[given["text"]],
                         seq_len=frames * (height // 2) * (width // 2), **more)
    left = {name: np.array(sorted(told[f"{name}_keys"]), str) for name in ("missing", "unexpected")}
    np.savez(f"{work}/found.npz", **left, video=out[0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
