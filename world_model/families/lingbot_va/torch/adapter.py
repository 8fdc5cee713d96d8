"""LingBot-VA's PyTorch runtime behind the same methods as jax_adapter.py, to compare: numpy in, numpy out (extra:
torch). It serves and does not train."""

from collections.abc import Mapping

import numpy as np

from world_model.families.lingbot_va.layout import LingBotVASpec, Modality
from world_model.families.lingbot_va.torch.network import Network, load_network
from world_model.families.lingbot_va.torch.sampler import LingBotVATorchSampler, TorchEpisode
from world_model.families.wan.torch_layers import to_tensor


class TorchLingBotVAAdapter:
    """The PyTorch network of `spec`."""

    params = None  # where the JAX model has them

    def __init__(self, spec: LingBotVASpec, network: Network):
        self.spec, self.network = spec, network

    @classmethod
    def from_reference(cls, spec: LingBotVASpec, tensors: Mapping[str, np.ndarray]) -> "TorchLingBotVAAdapter":
        """Makes the adapter from weights under the reference's names. Raises RuntimeError where they do not fit."""
        return cls(spec, load_network(tensors, spec))

    def start(self, text: np.ndarray, chunk_frames: int, window_blocks: int) -> "CachedTorchLingBotVAAdapter":
        """Cached inference; text [B, Lt, text_dim]."""
        sampler = LingBotVATorchSampler(self.network, self.spec, chunk_frames=chunk_frames, window_blocks=window_blocks)
        return CachedTorchLingBotVAAdapter(sampler, text)

    def rollout(self, **settings) -> "NumpyRollout":
        """The serving loop."""
        return NumpyRollout(LingBotVATorchSampler(self.network, self.spec, **settings))


class CachedTorchLingBotVAAdapter:
    """Single passes over a cache of blocks."""

    def __init__(self, rollout: LingBotVATorchSampler, text: np.ndarray):
        self.rollout, self.session = rollout, rollout.start(to_tensor(text))

    def run(self, x: np.ndarray, timestep: np.ndarray, chunk: int, *, modality: Modality, write: bool) -> np.ndarray:
        """Velocities of a chunk's video [B, K, h, w, C] or actions [B, K n, A]; timestep [B, K]."""
        session = TorchEpisode(self.session.context, dict(self.session.cache), chunk, chunk * self.rollout.chunk_frames)
        velocity = self.rollout.run_pass(session, modality, to_tensor(x), to_tensor(timestep))
        self.session = session if write else self.session
        return velocity.numpy()

    def cached_blocks(self, below: int) -> np.ndarray:
        """The block of every cached token, of blocks < below, in the order of writing."""
        cache = self.session.cache
        return np.repeat(blocks := [b for b in sorted(cache) if b < below], [cache[b][0][0].shape[1] for b in blocks])

    def keys_values(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """[B, tokens, n, d] each, in the order of writing; layers count from 0, -1 is the last."""
        cache = self.session.cache
        return tuple(np.concatenate([cache[b][layer][i].numpy() for b in sorted(cache)], axis=1) for i in (0, 1))


class NumpyRollout:
    """LingBotVATorchSampler called as LingBotVASampler is."""

    def __init__(self, rollout: LingBotVATorchSampler):
        self.rollout = rollout

    def start(self, params, text, unconditional_text=None) -> TorchEpisode:
        """See LingBotVASampler."""
        return self.rollout.start(to_tensor(text), to_tensor(unconditional_text))

    def predict(self, params, session: TorchEpisode, noise, action_noise, action_mask=None, first_latents=None):
        """See LingBotVASampler."""
        latents, actions = self.rollout.predict(session, to_tensor(noise), to_tensor(action_noise),
                                                to_tensor(first_latents), to_tensor(action_mask))
        return latents.numpy(), actions.numpy(), session

    def observe(self, params, session: TorchEpisode, latents, actions) -> TorchEpisode:
        """See LingBotVASampler."""
        self.rollout.observe(session, to_tensor(latents), to_tensor(actions))
        return session
