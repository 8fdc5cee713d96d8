"""The PyTorch runtime behind the same methods as jax_adapter.py: numpy in, numpy out, to compare (extra: torch)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from world_model.attention.visibility import get_table
from world_model.diffusion import solvers
from world_model.diffusion.flow_matching import noise_levels
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.dreamzero.parity.jax_adapter import Losses, Output, Parts
from world_model.families.dreamzero.torch import runtime as torch_runtime
from world_model.families.dreamzero.torch.loading import load_network
from world_model.families.dreamzero.torch.sampler import Stepper
from world_model.families.dreamzero.visibility import TABLES
from world_model.families.dreamzero.weights.reference_format import network_sizes
from world_model.families.wan.torch_layers import to_tensor


class TorchAdapter:
    """The PyTorch runtime with these weights."""

    def __init__(self, runtime: torch_runtime.Runtime):
        self.runtime = runtime

    @classmethod
    def from_reference(cls, spec: DreamZeroSpec, tensors: Mapping[str, np.ndarray]) -> "TorchAdapter":
        """Makes the adapter from weights under the reference's names. Raises RuntimeError where they do not fit."""
        network = load_network(tensors, network_sizes(spec))
        return cls(torch_runtime.Runtime(network, spec.layout, spec.table(), spec.table(spec.rollout_visibility),
                                         spec.window_frames))

    @torch.no_grad()
    def forward(self, parts: Parts) -> Output:
        """Runs the forward over a whole window; without clean_latents, in the form that has no clean copy."""
        out = self._forward(parts)
        action = None if out.action is None else out.action.numpy()
        return Output(out.video.numpy(), action, [x.numpy() for x in out.hidden])

    def losses(self, example: Parts) -> Losses:
        """Computes what JaxAdapter.losses does, from the definition."""
        levels = noise_levels()
        sigma, timestep, weight = ({name: torch.from_numpy(table[example[f"{name}_index"]])
                                    for name in ("video", "action")} for table in levels)
        e = _tensors(example)
        per_frame, per_action = sigma["video"][..., None, None, None], sigma["action"][..., None]
        out = self._forward({
            "clean_latents": e["latents"], "condition": e["condition"], "text": e["text"], "image": e["image"],
            "noisy_latents": (1 - per_frame) * e["latents"] + per_frame * e["noise"],
            "video_timestep": timestep["video"], "action_timestep": timestep["action"], "state": e["state"],
            "noisy_actions": (1 - per_action) * e["actions"] + per_action * e["action_noise"]})
        video = (out.video - (e["noise"] - e["latents"])).square().mean((2, 3, 4))
        action = ((out.action - (e["action_noise"] - e["actions"])).square() * e["action_mask"]).mean(-1)
        video_loss, action_loss = (video * weight["video"]).mean(), (action * weight["action"]).mean()
        parameters = dict(self.runtime.model.named_parameters())
        gradients = torch.autograd.grad(video_loss + action_loss, list(parameters.values()))
        norms = {name: g.norm().item() for name, g in zip(parameters, gradients, strict=True)}
        return Losses(video_loss.item(), action_loss.item(), norms)

    def _forward(self, parts: Parts) -> torch_runtime.Forward:
        parts = _tensors(parts)
        context = self.runtime.model.context(parts.pop("text"), parts.pop("image", None))
        no_clean = parts.get("clean_latents") is None
        table = TABLES["dreamzero_no_clean"] if no_clean else None
        return self.runtime.forward(context, table=table, **parts)

    @torch.no_grad()
    def start(self, text: np.ndarray, image: np.ndarray | None, table: str) -> "CachedTorchAdapter":
        """Cached inference under the visibility table of that name."""
        tensors = _tensors({"text": text, "image": image})
        return CachedTorchAdapter(self.runtime.start(**tensors, table=get_table(table, TABLES)))

    def solve(self, velocity: Callable, sample: np.ndarray, solver: solvers.Euler | solvers.UniPC,
              run: np.ndarray) -> np.ndarray:
        """All samples [steps + 1, ...]; velocity(sample, timestep) is asked for where run [steps] is True."""
        samples, stepper = [sample], Stepper(solver)
        for i, fresh in enumerate(run):
            if fresh:
                v = torch.from_numpy(velocity(samples[-1], solver.timesteps[i]))
            samples.append(stepper.step(i, v, torch.from_numpy(samples[-1])).numpy())
        return np.stack(samples)


class CachedTorchAdapter:
    """One cached rollout."""

    def __init__(self, session: torch_runtime.CachedBlocks):
        self.session = session

    @torch.no_grad()
    def prefill(self, clean_latents: np.ndarray, condition: np.ndarray | None) -> None:
        """Clean latents of the next block into the cache; block 0 is the first frame."""
        self.session.prefill(**_tensors({"clean_latents": clean_latents, "condition": condition}))

    @torch.no_grad()
    def denoise(self, parts: Parts, condition: np.ndarray | None) -> Output:
        """Velocities of the block that follows the cached ones; `parts` as in ForwardInputs, of this block."""
        out = self.session.denoise(**_tensors({**parts, "condition": condition}))
        return Output(out.video.numpy(), out.action.numpy())

    def keys_values(self, layer: int) -> np.ndarray:
        """[2, B, L, n, d] of the clean tokens cached so far; layers count from 0, -1 is the last."""
        return torch.stack(self.session.cache.keys_values[layer]).numpy()


def _tensors(parts: Mapping) -> dict[str, torch.Tensor | None]:
    return {name: to_tensor(x) for name, x in parts.items()}
