"""An exported LingBot-VLA as a policy (extra: torch)."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from world_model.diffusion.inpainting import Inpainting
from world_model.families.base.torch_policy import TorchPolicy
from world_model.families.lingbot_vla.torch import network
from world_model.families.lingbot_vla.torch.sampler import LingBotVLATorchSampler


class EpisodeState(NamedTuple):
    """What an episode keeps: the newest pictures, and its prompt."""

    pictures: tuple[Tensor, Tensor]  # views, which there are
    text_ids: Tensor
    text_length: Tensor


class LingBotVLATorchPolicy(TorchPolicy):
    """`runtime` is a LingBotVLATorchSampler."""

    def load(self, directory: Path) -> LingBotVLATorchSampler:
        made, spec, _ = network.load(directory, self.device)
        return LingBotVLATorchSampler(made, spec, **self.settings)

    def sample_noise(self, sampler, keys, block):
        return (sampler.noise(keys, block),)

    def begin_episode(self, start) -> EpisodeState:
        return EpisodeState(*start)

    def observe_block(self, state: EpisodeState, seen, actions: Tensor, block: int) -> EpisodeState:
        return state._replace(pictures=seen)

    def predict_block(self, state: EpisodeState, noise: tuple, robot_state: Tensor, block: int, inpainting: Inpainting):
        prefix = self.runtime.encode_prefix(*state.pictures, state.text_ids, state.text_length)
        return None, self.runtime.denoise(prefix, robot_state[:, 0], *noise, inpainting)
