"""An exported LingBot-VA as a policy; a block is a chunk of one latent frame (extra: torch)."""

import dataclasses
from pathlib import Path

from torch import Tensor

from world_model.diffusion.inpainting import Inpainting
from world_model.families.base.torch_policy import TorchPolicy
from world_model.families.lingbot_va.torch import network
from world_model.families.lingbot_va.torch.sampler import LingBotVATorchSampler, TorchEpisode
from world_model.families.wan.inputs import Conditions


class LingBotVATorchPolicy(TorchPolicy):
    """`runtime` is a LingBotVATorchSampler."""

    def load(self, directory: Path) -> LingBotVATorchSampler:
        made, spec, _ = network.load(directory, self.device)
        return LingBotVATorchSampler(made, spec, **self.settings | {"chunk_frames": 1})

    def sample_noise(self, sampler, keys, block):
        return sampler.noise(keys, block, 1)

    def begin_episode(self, start: Conditions) -> TorchEpisode:
        episode, spec = self.runtime.start(start.text, start.unconditional_text), self.runtime.spec
        nothing = start.first_latents.new_zeros(1, spec.actions_per_frame, spec.action_dim)
        return self.observe_block(episode, start.first_latents, nothing, 0)

    def observe_block(self, state: TorchEpisode, seen: Tensor, actions: Tensor, block: int) -> TorchEpisode:
        self.runtime.observe(dataclasses.replace(state, chunk=block, frame=block), seen, actions)
        return state

    def predict_block(self, state: TorchEpisode, noise: tuple, robot_state: Tensor, block: int, inpainting: Inpainting):
        """See `TorchPolicy`; what the prediction writes is dropped."""
        episode = dataclasses.replace(state, cache=dict(state.cache), chunk=block, frame=block)
        return self.runtime.predict(episode, *noise, None, self.channels, inpainting)
