"""The last block of a DreamZero rollout in PyTorch, to stand beside ours in the same process:

    python -m benchmarks.rollout --config=configs/dreamzero_5b.py ... --reference=benchmarks/torch_rollout.py

The exports' own runtime (world_model/families/dreamzero/torch) under torch.compile, with the cache filled before.
"""

import torch
from torch import nn

from world_model.batch import Layout
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.dreamzero.torch.network import DreamZero
from world_model.families.dreamzero.torch.runtime import Runtime
from world_model.families.dreamzero.torch.sampler import DreamZeroTorchSampler
from world_model.families.dreamzero.torch.step import example
from world_model.families.dreamzero.weights.reference_format import network_sizes

SETTINGS = ("steps", "guidance", "solver", "skipping")


def make_step(shape: dict, device: str):
    """See benchmarks/reference.py."""
    fields = {name: value for name, value in shape.items() if name not in (*SETTINGS, "batch", "compute_dtype")}
    spec = DreamZeroSpec(**fields | {"layout": Layout(**fields["layout"])})
    torch.manual_seed(0)
    with torch.device(device):
        model = DreamZero(**network_sizes(spec)).to(getattr(torch, shape["compute_dtype"]))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        model.compile()
        runtime = Runtime(model, spec.layout, spec.table(), spec.table(spec.rollout_visibility), spec.window_frames)
        sampler = DreamZeroTorchSampler(runtime, **{name: shape[name] for name in SETTINGS})
        with torch.no_grad():
            session, parts = example(runtime, shape["batch"] * (2 if sampler.guided else 1), spec.layout.num_blocks,
                                     (spec.latent_height, spec.latent_width), spec.text_length, spec.image_tokens)
    arguments = [None if (x := parts[name]) is None else x[:shape["batch"]].float()
                 for name in ("noisy_latents", "noisy_actions", "state", "condition")]

    def run() -> None:
        sampler.denoise(session, *arguments)
        if device == "cuda":
            torch.cuda.synchronize()

    return run
