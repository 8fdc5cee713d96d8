"""LingBot-VLA's sampler in PyTorch: the procedure of families/lingbot_vla/sampler.py (extra: torch)."""

import dataclasses

import torch
from torch import Tensor

from world_model.diffusion.inpainting import Inpainting, inpainting_velocity
from world_model.families.lingbot_vla.sampler import times
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.torch.network import EncodedPrefix, Network, time_sinusoid
from world_model.families.lingbot_vla.torch.vision import make_patches


@dataclasses.dataclass(frozen=True)
class LingBotVLATorchSampler:
    """Settings as in LingBotVLASampler."""

    network: Network
    spec: LingBotVLASpec
    steps: int = 10

    @torch.no_grad()
    def encode_prefix(self, views: Tensor, view_mask: Tensor, text_ids: Tensor, text_length: Tensor) -> EncodedPrefix:
        """What a prediction starts from: views uint8 [B, V, H, W, 3], view_mask bool [B, V], text_ids int [B,
        text_length], text_length int [B]."""
        return self.network.encode_prefix(make_patches(self.spec, views), view_mask, text_ids, text_length)

    @torch.no_grad()
    def denoise(self, prefix: EncodedPrefix, state: Tensor, noise: Tensor, inpainting: Inpainting | None = None
                ) -> Tensor:
        """float32 [B, N, action_dim] from noise like it; given actions move from noise to their value at a
        constant velocity."""
        conditions = time_sinusoid(torch.from_numpy(times(self.steps)[:-1]).to(noise.device), self.spec.expert_dim)
        x, constant = noise, None if inpainting is None else inpainting_velocity(noise, inpainting.actions, -1.0)
        for condition in conditions:
            velocity = self.network.velocity(prefix, state, x, condition.expand(len(x), -1))
            if constant is not None:
                velocity = torch.where(inpainting.action_mask, constant, velocity)
            x = x - velocity / self.steps
        return x
