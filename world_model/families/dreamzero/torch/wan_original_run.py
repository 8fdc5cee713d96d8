"""Runs an export with --format=wan in somebody's checkout of the original Wan2.1 or Wan2.2, by their own interpreter.

    PYTHON wan_original_run.py CHECKOUT EXPORT WORK

Needs that project's packages (flash-attn may be missing), and world_model/original_side.py. wan_original_check.py asks
for the network's forward in float32 with exact softmax.
"""

import importlib
import inspect
import sys
import types
from pathlib import Path

import torch

from world_model import original_side


def original(checkout: str):
    """Its module of the network; its packages import what generating a video needs."""
    for name in ("wan", "wan.modules"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(checkout, *name.split(".")))]
    found = importlib.import_module("wan.modules.model")
    vars(found)["flash_attention"] = original_side.exact_attention
    return found


@torch.no_grad()
def main(checkout: str, export: str, work: str) -> None:
    """Computes what WORK/inputs.npz asks and writes WORK/found.npz."""
    network, loading = original(checkout).WanModel.from_pretrained(
        export, torch_dtype=torch.float32, output_loading_info=True)
    given = {name: torch.from_numpy(x) for name, x in original_side.read_inputs(work).items()}
    _, frames, height, width = given["latents"].shape
    more = {"clip_fea": given["image"][None]} if "clip_fea" in inspect.signature(network.forward).parameters else {}
    if "condition" in given:
        more["y"] = [given["condition"]]
    out = network.eval()([given["latents"]], t=given["timestep"], context=[given["text"]],
                         seq_len=frames * (height // 2) * (width // 2), **more)
    original_side.write_results(work, loading["missing_keys"], loading["unexpected_keys"], video=out[0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
