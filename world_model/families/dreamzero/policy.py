"""DreamZero as a policy: a cache of clean video, block after block, until the window is full."""

from typing import NamedTuple

import jax

from world_model.families.base.batched_policy import Asked, Window
from world_model.families.base.policy import Chunk
from world_model.families.dreamzero import cached
from world_model.families.wan.policy import VideoPolicy
from world_model.layers.stack import Context


class Episode(NamedTuple):
    """What an episode keeps."""

    context: Context
    condition: jax.Array | None  # [1, F, h, w, 4 + C], from the first frame


class DreamZeroPolicy(VideoPolicy):
    """`sampler` is a DreamZeroSampler."""

    @property
    def last_block(self) -> int:
        """The block after which the cache has no room."""
        return self.sampler.model.spec.layout.num_blocks

    def begin_episode(self, params, frozen, pictures, text_ids, text_length):
        sampler, start = self.sampler, self.inputs.start(frozen, pictures, text_ids, text_length)
        text = sampler.branches(start.text, start.unconditional_text)
        context = sampler.context(params, text, sampler.both(start.image))
        cache = cached.empty_cache(sampler.model.spec, len(text), params["patch_embedding.kernel"].dtype)
        cache = sampler.prefill(params, cache, context, sampler.both(start.first_latents),
                                sampler.both(sampler.block_frames(start.condition, 0)), 0)
        return cache, Episode(context, start.condition)

    def observe_block(self, params, window: Window, seen, actions, block, data):
        """See `BatchedPolicy`; executed actions are not remembered."""
        both = self.sampler.both
        return self.sampler.prefill(params, window.cache, window.episode.context, both(seen),
                                    both(self._condition(window, block)), block)

    def predict_block(self, params, window: Window, asked: Asked, video_given=False) -> Chunk:
        sampler, block = self.sampler, asked.block
        latents, actions, _ = sampler.denoise(
            params, window.cache, window.episode.context, *sampler.noise(asked.key[None], block),
            asked.state[None, None], self._condition(window, block), block, self.inpainting(window, asked, video_given))
        return Chunk(actions, latents)

    def imagine_block(self, params, window: Window, asked: Asked) -> Chunk:
        """See `BatchedPolicy`: actions are clean while video is noise, as decoupled noise has it in training."""
        sampler, block, actions = self.sampler, asked.block, asked.actions[None]
        held = self.inpainting(window, asked._replace(given=asked.given | True), False)
        latents, _, _ = sampler.denoise(
            params, window.cache, window.episode.context, sampler.noise(asked.key[None], block)[0], actions,
            asked.state[None, None], self._condition(window, block), block, held, True)
        return Chunk(actions, latents)

    def _condition(self, window: Window, block):
        if window.episode.condition is None:
            return None
        spec = self.sampler.model.spec
        return jax.lax.dynamic_slice_in_dim(window.episode.condition, cached.first_frame(spec, block),
                                            spec.layout.frames_per_block, axis=1)
