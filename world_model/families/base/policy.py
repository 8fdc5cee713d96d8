"""A policy over slots: many episodes at once, each with its own window of what was seen, each at its own block.

`start` begins a window at a first frame, `observe` puts what really happened into the place of the block that was
imagined, `act` predicts the next block. Each takes a batch of slots, and a slot's numbers do not depend on the others
in the batch. `SlotPolicy` is what families share in JAX; torch_policy.py beside it runs exports in PyTorch.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from world_model.families.base.loss import Objective


class Chunk(NamedTuple):
    """One predicted block per row."""

    actions: np.ndarray  # float32 [B, actions_per_block, action_dim], normalised
    latents: np.ndarray  # float32 [B, frames_per_block, h, w, C]


class Policy(Protocol):
    """What acts. Arrays are numpy; rows of a batch are different slots."""

    last_block: int | None  # after which a window is full; None: it slides on
    batch_sizes: tuple[int, ...]  # each compiles, so that each is to be called before it counts

    def forget(self) -> None:
        """Empties every window."""

    def start(self, slots, frames, text_ids, text_length) -> None:
        """New windows in `slots` [B]: frames uint8 [B, 1, H, W, 3], text_ids [B, text_length], text_length [B]."""

    def observe(self, slots, frames, actions, block) -> np.ndarray:
        """What really happened in `block` int [B], 1 or above, the one predicted last: frames uint8
        [B, 4 frames_per_block, H, W, 3], actions float32 [B, actions_per_block, action_dim] as executed, normalised.

        Returns float32 [B], root mean square of observed minus imagined latents.
        """

    def act(self, slots, state, block, keys, actions, known) -> Chunk:
        """Predicts `block` int [B], 1 or above, where actions that are on their way are given.

        Args:
          state: float32 [B, state_dim], normalised, at the block's start.
          keys: one per row, of its noise.
          actions: float32 [B, actions_per_block, action_dim], normalised; looked at where `known`, bool, is True.
        """

    def decode(self, latents) -> np.ndarray:
        """Latents [B, n, h, w, C] that follow some frame -> uint8 [B, 4 n, H, W, 3]."""


def pixels(frames):
    """uint8 -> float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def encode_later(objective: Objective, frames):
    """Frames uint8 [B, 4 n, H, W, 3] of a block after the first -> latents [B, n, h, w, C].

    The codec wants 4k + 1 frames; those before this block are gone: its first frame stands in for them, as in the
    reference (facts/dreamzero.md, d). A codec without memory, such as PatchPca, gives the training latents.
    """
    video = pixels(frames)
    return objective.codec.encode(objective.frozen["video"], jnp.concatenate([video[:, :1], video], axis=1))[:, 1:]


def decode_later(objective: Objective, latents):
    """The inverse: -> uint8 [B, 4 n, H, W, 3]."""
    later = objective.codec.decode(objective.frozen["video"], jnp.concatenate([latents[:, :1], latents], axis=1))
    return jnp.round((later[:, 1:] + 1) * 127.5).astype(jnp.uint8)


class Window(NamedTuple):
    """What a slot remembers. In `SlotPolicy` every array has the slots in front."""

    cache: Any  # keys and values of what was really seen
    given: Any  # what an episode keeps: keys and values of the prompt, conditions
    imagined: jax.Array  # float32 [frames_per_block, h, w, C]: the block predicted last


@dataclasses.dataclass(eq=False)
class SlotPolicy:
    """A `Policy` in JAX: compiled once per batch size. Families say what happens to one episode, here it is mapped over
    slots: `first`, `seen` and `predict`, and `places`, what they are told of a block beside its number.
    """

    rollout: Any
    objective: Objective  # for its encoders
    params: dict
    slots: int
    channels: np.ndarray  # bool [action_dim], those that the robot has
    batch_sizes: tuple[int, ...] = (1,)  # compiled; a batch is filled up to the next one

    last_block = None

    def __post_init__(self):
        # Arguments of what is compiled, not constants in it.
        self._arrays = self.rollout.placed(self.params), self.objective.frozen
        compiled = lambda function: jax.jit(function, donate_argnums=1)
        self._start, self._observe, self._act = map(compiled, (self._start_rows, self._observe_rows, self._act_rows))
        self._decode = jax.jit(lambda arrays, latents: decode_later(self._encoders(arrays), latents))
        self.forget()

    # --- of one episode, told by a family ----------------------------------------------------------------------

    def first(self, params, objective: Objective, frame, text_ids, text_length) -> tuple[Any, Any]:
        """(cache, given) from frame uint8 [1, 1, H, W, 3], text_ids [1, text_length], text_length [1]."""
        raise NotImplementedError

    def seen(self, params, window: Window, latents, actions, block, places):
        """The cache with a block's latents [1, n, h, w, C] and executed actions [1, N, action_dim]."""
        raise NotImplementedError

    def predict(self, params, window: Window, state, block, key, actions, known, places) -> Chunk:
        """The next block, rows of one."""
        raise NotImplementedError

    def places(self, block: np.ndarray):
        """Of every row; made on the host."""
        return ()

    # --- over slots ----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """See `Policy`."""
        spec, text = self.rollout.model.spec, self.objective.text_encoder
        layout, of = spec.layout, jax.ShapeDtypeStruct
        shapes = jax.eval_shape(self._first, self._arrays, of((1, layout.height, layout.width, 3), jnp.uint8),
                                of((text.text_length,), jnp.int32), of((), jnp.int32))
        # One slot more: rows that fill up a batch write there.
        self._windows = jax.tree.map(lambda x: jnp.zeros((self.slots + 1, *x.shape), x.dtype), shapes)

    def start(self, slots, frames, text_ids, text_length) -> None:
        """See `Policy`."""
        rows = self._filled(slots, frames, text_ids, text_length)
        self._windows = self._start(self._arrays, self._windows, *rows)

    def observe(self, slots, frames, actions, block) -> np.ndarray:
        """See `Policy`."""
        rows = self._filled(slots, frames, actions, block)
        self._windows, gap = self._observe(self._arrays, self._windows, *rows, self.places(rows[-1]))
        return np.asarray(gap)[:len(slots)]

    def act(self, slots, state, block, keys, actions, known) -> Chunk:
        """See `Policy`."""
        rows = self._filled(slots, state, block, keys, actions, known)
        self._windows, chunk = self._act(self._arrays, self._windows, *rows, self.places(rows[2]))
        return jax.tree.map(lambda x: x[:len(slots)], jax.device_get(chunk))

    def decode(self, latents) -> np.ndarray:
        """See `Policy`."""
        return np.asarray(self._decode(self._arrays, latents))

    def _filled(self, slots, *rows) -> tuple:
        """(slots, rows) up to the next compiled batch size: the first row again, in the spare slot."""
        count = len(slots)
        spare = next(size for size in sorted(self.batch_sizes) if size >= count) - count
        which = np.append(np.arange(count), np.zeros(spare, int))
        return np.append(slots, np.full(spare, self.slots)).astype(np.int32), *(x[which] for x in rows)

    def _start_rows(self, arrays, windows, slots, *first) -> Window:
        new = jax.vmap(self._first, in_axes=(None, *[0] * len(first)))(arrays, *first)
        return jax.tree.map(lambda all_, rows: all_.at[slots].set(rows), windows, new)

    def _observe_rows(self, arrays, windows, slots, *happened) -> tuple[Window, jax.Array]:
        rows = _rows(windows, slots), *happened
        cache, gap = jax.vmap(self._seen, in_axes=(None, *[0] * len(rows)))(arrays, *rows)
        caches = jax.tree.map(lambda all_, new: all_.at[slots].set(new), windows.cache, cache)
        return windows._replace(cache=caches), gap

    def _act_rows(self, arrays, windows, slots, *asked) -> tuple[Window, Chunk]:
        rows, one = (_rows(windows, slots), *asked), lambda *row: self.predict(arrays[0], *row)
        if len(slots) == 1:  # what is decided on the way (step_skipping.Adaptive) then saves work: a row of vmap cannot
            chunk = jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], rows)))
        else:
            chunk = jax.vmap(one)(*rows)
        chunk = jax.tree.map(lambda x: x[:, 0].astype(jnp.float32), chunk)
        return windows._replace(imagined=windows.imagined.at[slots].set(chunk.latents)), chunk

    def _first(self, arrays, frame, text_ids, text_length) -> Window:
        spec = self.rollout.model.spec
        cache, given = self.first(arrays[0], self._encoders(arrays), frame[None], text_ids[None],
                                  jnp.reshape(text_length, 1))
        latent = spec.layout.frames_per_block, spec.latent_height, spec.latent_width, spec.latent_channels
        return Window(cache, given, jnp.zeros(latent))

    def _seen(self, arrays, window: Window, frames, actions, block, places):
        latents = encode_later(self._encoders(arrays), frames[None])
        cache = self.seen(arrays[0], window, latents, actions[None], block, places)
        return cache, jnp.sqrt(jnp.square(latents[0] - window.imagined).mean())

    def _encoders(self, arrays) -> Objective:
        return dataclasses.replace(self.objective, frozen=arrays[1])


def _rows(windows: Window, slots) -> Window:
    return jax.tree.map(lambda x: x[slots], windows)
