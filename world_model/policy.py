"""A policy over slots: many episodes at once, each with its own window of cached video, each at its own block.

`start` begins a window at a first frame, `observe` puts the frames that were really seen into the place of the block
that was imagined, `act` predicts the next block. Each takes a batch of slots, and a slot's numbers do not depend on
the others in the batch. Shapes are static: every function compiles once per batch size.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from world_model.families import dreamzero_cached as cached
from world_model.families.dreamzero_rollout import DreamZeroRollout
from world_model.families.stack import Cache, Context
from world_model.objective import Objective
from world_model.rollout import Known


class Window(NamedTuple):
    """What a slot remembers. In `Policy.empty` every array has the slots in front."""

    cache: Cache  # keys and values of the clean video so far, one per branch
    context: Context  # those of the prompt
    condition: jax.Array | None  # [1, F, h, w, 4 + C], from the first frame
    imagined: jax.Array  # float32 [frames_per_block, h, w, C]: the block predicted last


class Chunk(NamedTuple):
    """One predicted block per row."""

    actions: jax.Array  # float32 [B, actions_per_block, action_dim], normalised
    latents: jax.Array  # float32 [B, frames_per_block, h, w, C]
    model_calls: jax.Array  # int32 [B]: solver steps that ran the model


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """The compiled functions of a trained model. `windows` is donated: use what is returned."""

    rollout: DreamZeroRollout
    objective: Objective  # for its encoders

    def __post_init__(self):
        """Raises ValueError for a family whose rollouts go otherwise."""
        if not isinstance(self.rollout, DreamZeroRollout):
            raise ValueError(f"{type(self.rollout).__name__} cannot be served over slots: this policy caches "
                             "DreamZero's blocks. LingBot-VA acts through launch/chunk_policy.py")

    def empty(self, params: dict, slots: int) -> Window:
        """Windows of `slots` episodes, all zeros."""
        spec = self.rollout.model.spec
        layout, text = spec.layout, self.objective.text_encoder
        frame = jax.ShapeDtypeStruct((1, layout.height, layout.width, 3), jnp.uint8)
        shapes = jax.eval_shape(self._first, params, frame, jax.ShapeDtypeStruct((text.text_length,), jnp.int32),
                                jax.ShapeDtypeStruct((), jnp.int32))
        return jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), shapes)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def start(self, params, windows: Window, slots, frames, text_ids, text_length) -> Window:
        """New windows in `slots` [B]: frames uint8 [B, 1, H, W, 3], text_ids [B, text_length], text_length [B]."""
        first = jax.vmap(self._first, in_axes=(None, 0, 0, 0))(params, frames, text_ids, text_length)
        return jax.tree.map(lambda all_, new: all_.at[slots].set(new), windows, first)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def observe(self, params, windows: Window, slots, frames, block) -> tuple[Window, jax.Array]:
        """Caches frames uint8 [B, 4 frames_per_block, H, W, 3] as `block` int [B], 1 or above.

        Returns:
          (windows, float32 [B] root mean square of observed minus imagined latents).
        """
        seen, gap = jax.vmap(self._seen, in_axes=(None, 0, 0, 0))(params, _rows(windows, slots), frames, block)
        caches = jax.tree.map(lambda all_, new: all_.at[slots].set(new), windows.cache, seen)
        return windows._replace(cache=caches), gap

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def act(self, params, windows: Window, slots, state, block, keys, actions, known) -> tuple[Window, Chunk]:
        """Predicts `block` int [B], 1 or above, of `slots` [B], where actions that are on their way are given.

        Args:
          state: float32 [B, state_dim], normalised, at the block's start.
          keys: one per row.
          actions: float32 [B, actions_per_block, action_dim], normalised; looked at where `known`, bool, is True.
        """
        rows = _rows(windows, slots), state, block, keys, actions, known
        if len(slots) == 1:  # what is decided on the way (step_skipping.Adaptive) then saves work: a row of vmap cannot
            chunk = jax.tree.map(lambda x: x[None], self._next(params, *jax.tree.map(lambda x: x[0], rows)))
        else:
            chunk = jax.vmap(self._next, in_axes=(None, *[0] * len(rows)))(params, *rows)
        return windows._replace(imagined=windows.imagined.at[slots].set(chunk.latents)), chunk

    @functools.partial(jax.jit, static_argnums=0)
    def decode(self, latents):
        """Latents [B, n, h, w, C] that follow some frame -> uint8 [B, 4 n, H, W, 3]."""
        objective = self.objective
        later = objective.codec.decode(objective.frozen["video"], jnp.concatenate([latents[:, :1], latents], axis=1))
        return jnp.round((later[:, 1:] + 1) * 127.5).astype(jnp.uint8)

    def _first(self, params, frame, text_ids, text_length) -> Window:
        objective, rollout = self.objective, self.rollout
        spec, frozen = rollout.model.spec, objective.frozen
        encode = lambda ids, length: objective.text_encoder.encode(frozen["text"], ids[None], jnp.reshape(length, 1))
        text = encode(text_ids, text_length)
        if rollout.guided:
            ids, length = objective.text_encoder.tokenize("")
            text = jnp.concatenate([text, encode(jnp.asarray(ids), length)])
        video = frame[None].astype(jnp.float32) / 127.5 - 1
        condition = None
        if spec.concat_first_frame:
            condition = objective.condition(objective.codec.encode_first(frozen["video"], video, spec.layout.frames))
        image = None
        if spec.image_dim:
            image = rollout.both(objective.image_encoder.encode(frozen["image"], video[:, 0]))
        context = rollout.context(params, text, image)
        cache = cached.empty_cache(spec, len(text), params["patch_embedding.kernel"].dtype)
        cache = rollout.prefill(params, cache, context, rollout.both(objective.codec.encode(frozen["video"], video)),
                                rollout.both(rollout.block_frames(condition, 0)), 0)
        latent = (spec.layout.frames_per_block, spec.latent_height, spec.latent_width, spec.latent_channels)
        return Window(cache, context, condition, jnp.zeros(latent))

    def _seen(self, params, window: Window, frames, block) -> tuple[Cache, jax.Array]:
        codec, rollout = self.objective.codec, self.rollout
        video = frames[None].astype(jnp.float32) / 127.5 - 1
        # The codec wants 4k + 1 frames; those before this block are gone: its first frame stands in for them, as in
        # the reference (facts/dreamzero.md, d). A codec without memory, such as PatchPca, gives the training latents.
        latents = codec.encode(self.objective.frozen["video"], jnp.concatenate([video[:, :1], video], axis=1))[:, 1:]
        cache = rollout.prefill(params, window.cache, window.context, rollout.both(latents),
                                rollout.both(self._block_condition(window, block)), block)
        return cache, jnp.sqrt(jnp.square(latents[0] - window.imagined).mean())

    def _next(self, params, window: Window, state, block, key, actions, known) -> Chunk:
        rollout, video = self.rollout, window.imagined[None]
        given = Known(actions[None], known[None], video, jnp.zeros((1,) * video.ndim, bool))
        latents, actions, calls = rollout.denoise(
            params, window.cache, window.context, *rollout.noise(key[None], block), state[None, None],
            self._block_condition(window, block), block, given)
        return Chunk(actions[0].astype(jnp.float32), latents[0].astype(jnp.float32), calls)

    def _block_condition(self, window: Window, block):
        if window.condition is None:
            return None
        spec = self.rollout.model.spec
        return jax.lax.dynamic_slice_in_dim(window.condition, cached.first_frame(spec, block),
                                            spec.layout.frames_per_block, axis=1)


def _rows(windows: Window, slots) -> Window:
    return jax.tree.map(lambda x: x[slots], windows)
