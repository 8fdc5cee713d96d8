"""LingBot-VLA's PyTorch runtime behind those methods of jax_adapter.py that serve, to compare: numpy in, numpy out
(extra: torch)."""

from collections.abc import Mapping

import numpy as np
import torch

from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.torch.network import EncodedPrefix, Network, load_network, time_sinusoid
from world_model.families.lingbot_vla.torch.sampler import LingBotVLATorchSampler


class TorchLingBotVLAAdapter:
    """The PyTorch network of `spec`."""

    def __init__(self, spec: LingBotVLASpec, network: Network):
        self.spec, self.network = spec, network

    @classmethod
    def from_reference(cls, spec: LingBotVLASpec, tensors: Mapping[str, np.ndarray]) -> "TorchLingBotVLAAdapter":
        """Makes the adapter from weights under the reference's names. Raises RuntimeError where they do not fit."""
        return cls(spec, load_network(tensors.items(), spec))

    @torch.no_grad()
    def _encode_prefix(self, example: Example) -> EncodedPrefix:
        inputs = example.patches, example.view_mask, example.text_ids, example.text_length
        return self.network.encode_prefix(*map(torch.from_numpy, inputs))

    def keys_values(self, example: Example) -> list[tuple[np.ndarray, np.ndarray]]:
        """[B, Lp, kv heads, d] each, of every layer."""
        return [(keys.numpy(), values.numpy()) for keys, values in self._encode_prefix(example).layers]

    @torch.no_grad()
    def velocity(self, example: Example, actions: np.ndarray, time: np.ndarray) -> np.ndarray:
        """[B, N, A] at noisy actions and their times [B]."""
        condition = time_sinusoid(torch.from_numpy(time), self.spec.expert_dim)
        state, noisy = torch.from_numpy(example.state), torch.from_numpy(actions)
        return self.network.velocity(self._encode_prefix(example), state, noisy, condition).numpy()

    def sample(self, example: Example, noise: np.ndarray, steps: int) -> np.ndarray:
        """Actions [B, N, A] by cached sampling."""
        sampler = LingBotVLATorchSampler(self.network, self.spec, steps)
        state, noise = torch.from_numpy(example.state), torch.from_numpy(noise)
        return sampler.denoise(self._encode_prefix(example), state, noise).numpy()
