"""LingBot-VA as a policy: chunks of one latent frame and its actions, in a ring that slides on.

The video of a chunk is imagined first and its actions follow from it. Executed actions enter the ring beside the frame
that they led to. Actions on their way are given to the chunk's action loop; its video does not see them, but where the
policy is asked what they lead to (`imagine`).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from world_model.families.base.batched_policy import Asked, Window
from world_model.families.base.policy import Chunk
from world_model.families.lingbot_va.cached import Episode
from world_model.families.wan.policy import VideoPolicy


class LingBotVAPolicy(VideoPolicy):
    """`sampler` is a LingBotVASampler; its chunks become those of a session, one frame long."""

    def __post_init__(self):
        self.sampler = dataclasses.replace(self.sampler, chunk_frames=1)
        super().__post_init__()

    def begin_episode(self, params, frozen, pictures, text_ids, text_length):
        """See `BatchedPolicy`: the first frame is chunk 0, with the zero actions that training has there."""
        start, spec = self.inputs.start(frozen, pictures, text_ids, text_length), self.sampler.model.spec
        episode = self.sampler.start(params, start.text, start.unconditional_text)
        nothing = jnp.zeros((1, spec.actions_per_frame, spec.action_dim))
        episode = self.sampler.observe(params, episode, start.first_latents, nothing)
        return episode.ring, episode.context

    def block_data(self, block: np.ndarray):
        """Rotary tables of video and actions; a block is the latent frame of that number."""
        return tuple(map(np.stack, zip(*(self.sampler.rotary(int(b), 1) for b in block), strict=True)))

    def observe_block(self, params, window: Window, seen, actions, block, data):
        return self.sampler.observe(params, _episode(window, block), seen, actions, data).ring

    def predict_block(self, params, window: Window, asked: Asked, video_given=False) -> Chunk:
        """See `BatchedPolicy`; the ring as predicted is dropped, for `observe_block` comes before the next chunk."""
        latents, actions, _ = self.sampler.predict(
            params, _episode(window, asked.block), *self.sampler.noise(asked.key[None], asked.block, 1),
            jnp.asarray(self.channels)[None], rotary=asked.data, inpainting=self.inpainting(window, asked, video_given))
        return Chunk(actions, latents)

    def imagine_block(self, params, window: Window, asked: Asked) -> Chunk:
        noise, _ = self.sampler.noise(asked.key[None], asked.block, 1)
        actions, episode = asked.actions[None], _episode(window, asked.block)
        latents, _ = self.sampler.ground(params, episode, noise, actions, rotary=asked.data)
        return Chunk(actions, latents)


def _episode(window: Window, block) -> Episode:
    return Episode(window.episode, window.cache, block, block)
