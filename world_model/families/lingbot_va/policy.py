"""LingBot-VA over slots: chunks of one latent frame and its actions, in a ring that slides on.

The video of a chunk is imagined first and its actions follow from it. Executed actions enter the ring beside the frame
that they led to. Actions on their way are given to the chunk's action loop; its video does not see them (what does, for
one robot at a time, is `LingBotVARollout.ground`, in launch/simulation/chunk_policy.py).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from world_model.families.base.policy import Chunk, SlotPolicy, Window
from world_model.families.base.sampler import Known
from world_model.families.lingbot_va.sampler import Session


class LingBotVAPolicy(SlotPolicy):
    """`rollout` is a LingBotVARollout; its chunks become those of a slot, one frame long."""

    def __post_init__(self):
        self.rollout = dataclasses.replace(self.rollout, chunk_frames=1)
        super().__post_init__()

    def first(self, params, objective, frame, text_ids, text_length):
        """See `SlotPolicy`: the first frame is chunk 0, with the zero actions that training has there."""
        begun, spec = objective.begin(frame, text_ids, text_length), self.rollout.model.spec
        session = self.rollout.start(params, begun.text, begun.unconditional_text)
        nothing = jnp.zeros((1, spec.actions_per_frame, spec.action_dim))
        session = self.rollout.observe(params, session, begun.first_latents, nothing)
        return session.ring, session.context

    def places(self, block: np.ndarray):
        """Rotary tables of video and actions; a block is the latent frame of that number."""
        return tuple(map(np.stack, zip(*(self.rollout.rotary(int(b), 1) for b in block), strict=True)))

    def seen(self, params, window: Window, latents, actions, block, places):
        """See `SlotPolicy`."""
        return self.rollout.observe(params, _session(window, block), latents, actions, places).ring

    def predict(self, params, window: Window, state, block, key, actions, known, places) -> Chunk:
        """See `SlotPolicy`; the ring as predicted is dropped, for `seen` comes before the next chunk."""
        video = window.imagined[None]
        given = Known(actions[None], known[None], video, jnp.zeros((1,) * video.ndim, bool))
        latents, actions, _ = self.rollout.predict(
            params, _session(window, block), *self.rollout.noise(key[None], block, 1), jnp.asarray(self.channels)[None],
            rotary=places, known=given)
        return Chunk(actions, latents)


def _session(window: Window, block) -> Session:
    return Session(window.given, window.cache, block, block)
