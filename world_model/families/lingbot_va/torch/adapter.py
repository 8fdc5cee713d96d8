"""LingBot-VA's PyTorch runtime behind the adapter of lingbot_va_face.py, for comparing: numpy in, numpy out (extra:
torch). It serves and does not train."""

from collections.abc import Mapping

import numpy as np
import torch

from world_model.families.lingbot_va.layout import LingBotVASpec
from world_model.families.lingbot_va.torch.network import Network, load_network
from world_model.families.lingbot_va.torch.sampler import Rollout, Session


class TorchLingBotVAAdapter:
    """The PyTorch network of `spec`."""

    params = None  # where the JAX model has them

    def __init__(self, spec: LingBotVASpec, network: Network):
        self.spec, self.network = spec, network

    @classmethod
    def from_reference(cls, spec: LingBotVASpec, tensors: Mapping[str, np.ndarray]) -> "TorchLingBotVAAdapter":
        """With weights under the reference's names; raises RuntimeError where they do not fit."""
        return cls(spec, load_network(tensors, spec))

    def start(self, text: np.ndarray, chunk_frames: int, window_blocks: int) -> "TorchLingBotVASession":
        """Cached inference; text [B, Lt, text_dim]."""
        return TorchLingBotVASession(Rollout(self.network, self.spec, chunk_frames=chunk_frames,
                                             window_blocks=window_blocks), text)

    def rollout(self, **settings) -> "NumpyRollout":
        """The serving loop."""
        return NumpyRollout(Rollout(self.network, self.spec, **settings))


class TorchLingBotVASession:
    """Single passes over a cache of blocks."""

    def __init__(self, rollout: Rollout, text: np.ndarray):
        self.rollout, self.session = rollout, rollout.start(_tensor(text))

    def run(self, x: np.ndarray, timestep: np.ndarray, chunk: int, *, of_video: bool, write: bool) -> np.ndarray:
        """Velocities of a chunk's video [B, K, h, w, C] or actions [B, K n, A]; timestep [B, K]."""
        session = Session(self.session.context, dict(self.session.cache), chunk, chunk * self.rollout.chunk_frames)
        velocity = self.rollout.run_pass(session, of_video, _tensor(x), _tensor(timestep))
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
    """`Rollout` called as lingbot_va_rollout.LingBotVARollout is."""

    def __init__(self, rollout: Rollout):
        self.rollout = rollout

    def start(self, params, text, unconditional_text=None) -> Session:
        """See LingBotVARollout."""
        return self.rollout.start(_tensor(text), _tensor(unconditional_text))

    def predict(self, params, session: Session, noise, action_noise, action_mask=None, first_latents=None):
        """See LingBotVARollout."""
        latents, actions = self.rollout.predict(session, _tensor(noise), _tensor(action_noise), _tensor(first_latents),
                                                _tensor(action_mask))
        return latents.numpy(), actions.numpy(), session

    def observe(self, params, session: Session, latents, actions) -> Session:
        """See LingBotVARollout."""
        self.rollout.observe(session, _tensor(latents), _tensor(actions))
        return session


def _tensor(x) -> torch.Tensor | None:
    return None if x is None else torch.from_numpy(np.array(x))
