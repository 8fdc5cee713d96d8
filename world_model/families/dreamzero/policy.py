"""DreamZero over slots: a cache of clean video, block after block, until the window is full."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from world_model.families.base.policy import Chunk, SlotPolicy, Window
from world_model.families.base.sampler import Known
from world_model.families.dreamzero import cached
from world_model.layers.stack import Context


class Given(NamedTuple):
    """What an episode keeps."""

    context: Context
    condition: jax.Array | None  # [1, F, h, w, 4 + C], from the first frame


class DreamZeroPolicy(SlotPolicy):
    """`rollout` is a DreamZeroRollout."""

    @property
    def last_block(self) -> int:
        """The cache has no room for more."""
        return self.rollout.model.spec.layout.num_blocks

    def first(self, params, objective, frame, text_ids, text_length):
        """See `SlotPolicy`."""
        rollout = self.rollout
        begun = objective.begin(frame, text_ids, text_length)
        text = rollout.branches(begun.text, begun.unconditional_text)
        context = rollout.context(params, text, rollout.both(begun.image))
        cache = cached.empty_cache(rollout.model.spec, len(text), params["patch_embedding.kernel"].dtype)
        cache = rollout.prefill(params, cache, context, rollout.both(begun.first_latents),
                                rollout.both(rollout.block_frames(begun.condition, 0)), 0)
        return cache, Given(context, begun.condition)

    def seen(self, params, window: Window, latents, actions, block, places):
        """See `SlotPolicy`; executed actions are not remembered."""
        both = self.rollout.both
        return self.rollout.prefill(params, window.cache, window.given.context, both(latents),
                                    both(self._condition(window, block)), block)

    def predict(self, params, window: Window, state, block, key, actions, known, places) -> Chunk:
        """See `SlotPolicy`."""
        rollout, video = self.rollout, window.imagined[None]
        given = Known(actions[None], known[None], video, jnp.zeros((1,) * video.ndim, bool))
        latents, actions, _ = rollout.denoise(
            params, window.cache, window.given.context, *rollout.noise(key[None], block), state[None, None],
            self._condition(window, block), block, given)
        return Chunk(actions, latents)

    def _condition(self, window: Window, block):
        if window.given.condition is None:
            return None
        spec = self.rollout.model.spec
        return jax.lax.dynamic_slice_in_dim(window.given.condition, cached.first_frame(spec, block),
                                            spec.layout.frames_per_block, axis=1)
