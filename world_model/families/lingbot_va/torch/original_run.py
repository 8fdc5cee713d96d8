"""Runs an export in somebody's checkout of the original LingBot-VA, by that project's own interpreter.

    PYTHON original_run.py CHECKOUT EXPORT WORK

Needs that project's packages (flash-attn may be missing) and nothing of ours. WORK/inputs.npz is what original_check.py
asks, WORK/found.npz what this answers: what the network's loader left out, and passes of two chunks over its own cache,
in float32.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch


def module(checkout: str, path: str):
    """A file of the original; its packages import what a server needs."""
    found = importlib.util.spec_from_file_location(f"original_{Path(path).stem}", Path(checkout) / path)
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


def without_flash_attention() -> None:
    """Its network names flash-attn where it is imported, and uses what config.json says: torch's. diffusers looks for
    it too, and must not find a stand-in."""
    importlib.import_module("diffusers.models.attention")
    if importlib.util.find_spec("flash_attn") is None:
        stand_in = types.ModuleType("flash_attn")
        vars(stand_in)["flash_attn_func"] = None
        sys.modules["flash_attn"] = stand_in


def passes(network, tools, inputs: dict) -> dict[str, np.ndarray]:
    """Of each chunk: noisy video, the same chunk's real video into the cache, and its actions likewise."""
    found, frames = {}, inputs["video0"].shape[2]
    for name in (name for name in inputs if name.startswith(("video", "action"))):
        x, action, write = inputs[name], name.startswith("action"), name.endswith("_real")
        _, _, _, height, width = x.shape
        rows, columns = (height, width) if action else (height // 2, width // 2)
        start = frames * int(name.removesuffix("_real").removeprefix("action").removeprefix("video"))
        grid = tools.get_mesh_id(frames, rows, columns, int(action), 1, start, action=action)
        out = network({"noisy_latents": x, "grid_id": grid[None], "text_emb": inputs["text"],
                       "timesteps": torch.full((1, frames), 0.0 if write else float(inputs["timestep"]))},
                      update_cache=2 if write else 0, action_mode=action)
        if not action:
            out = tools.data_seq_to_patch([1, 2, 2], out, frames, height, width)
        found[name] = out.numpy()
    return found


@torch.no_grad()
def main(checkout: str, export: str, work: str) -> None:
    """See the module."""
    without_flash_attention()
    model, tools = (module(checkout, f"wan_va/{path}") for path in ("modules/model.py", "utils/utils.py"))
    network, told = model.WanTransformer3DModel.from_pretrained(
        f"{export}/transformer", torch_dtype=torch.float32, output_loading_info=True)
    with np.load(f"{work}/inputs.npz") as file:
        inputs = {name: torch.from_numpy(file[name]) for name in file.files}
    video, action = (inputs[name][0, 0].numel() for name in ("video0", "action0"))
    network.create_empty_cache("pos", int(inputs["window"]), video // 4, action, "cpu", torch.float32, 1)
    left = {name: np.array(sorted(told[f"{name}_keys"]), str) for name in ("missing", "unexpected")}
    np.savez(f"{work}/found.npz", **left, **passes(network.eval(), tools, inputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
