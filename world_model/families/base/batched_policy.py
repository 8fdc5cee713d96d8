"""What families share of a `Policy` (base/policy.py) in JAX: windows of sessions, compiled per size of a batch."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.families.base.inputs import Inputs
from world_model.families.base.policy import Chunk


class Window(NamedTuple):
    """What a session remembers. In `BatchedPolicy` every array has the sessions in front."""

    cache: Any  # what was really seen, as later blocks need it
    episode: Any  # what an episode keeps: the prompt, conditions
    imagined: jax.Array | None = None  # float32 [frames_per_block, h, w, C]: the block predicted last


class Asked(NamedTuple):
    """What is asked of the next block: the arguments of `Policy.act`, of one session or with the sessions in front."""

    state: Any  # [state_dim]
    block: Any
    key: Any
    actions: Any  # [N, action_dim]
    given: Any
    data: Any  # `BatchedPolicy.block_data`


@dataclasses.dataclass(eq=False)
class BatchedPolicy:
    """A `Policy` in JAX, compiled once per batch size. A family says what happens to one episode, and it is mapped over
    sessions: `begin_episode`, `observe_block`, `predict_block`, and `block_data`, what they are told of a block beside
    its number. All arrays there have a leading axis of one sample.
    """

    sampler: Any
    inputs: Inputs
    frozen: dict  # the encoders' arrays
    params: dict
    sessions: int
    channels: np.ndarray  # bool [action_dim], those that the robot has
    batch_sizes: tuple[int, ...] = (1,)  # compiled; a batch is filled up to the next one

    def __post_init__(self):
        # Weights and encoders are arguments of what is compiled, not constants in it.
        self._arrays = self.place(self.params), self.frozen
        self._start = jax.jit(self._start_rows, donate_argnums=1)
        self._observe = jax.jit(self._observe_rows, donate_argnums=1)
        self._act = jax.jit(functools.partial(self._chunk_rows, self.predict_rows), donate_argnums=1)
        self._label = jax.jit(functools.partial(self._chunk_rows, self._label_rows), donate_argnums=1)
        self._imagine = jax.jit(functools.partial(self._chunk_rows, self._imagine_rows), donate_argnums=1)
        self._decode = jax.jit(self.inputs.decode_block)
        self.reset()

    # --- what happens to one episode, told by a family -----------------------------------------------------------

    @property
    def last_block(self) -> int | None:
        """See `Policy`."""
        return None

    def begin_episode(self, params, frozen, pictures, text_ids, text_length) -> tuple[Any, Any]:
        """(cache, episode) from first pictures, text_ids [1, text_length], text_length [1]."""
        raise NotImplementedError

    def observe_block(self, params, window: Window, seen, actions, block, data):
        """The cache with a block as it was seen (`Inputs.encode_block`) and its executed actions [1, N, action_dim]."""
        raise NotImplementedError

    def predict_block(self, params, window: Window, asked: Asked, video_given=False) -> Chunk:
        """The next block. video_given: its video is `window.imagined` (families that imagine none are never asked)."""
        raise NotImplementedError

    def predict_rows(self, params, windows: Window, asked: Asked) -> Chunk:
        """`predict_block` of many sessions, whose arrays stand in front of its axis of one; without that axis. A family
        whose network takes a batch as it is may do so here."""
        return _each(functools.partial(self.predict_block, params), windows, asked)

    def imagine_block(self, params, window: Window, asked: Asked) -> Chunk:
        """The block that actions lead to, all of which are given. A family with forward dynamics of its own has them
        here; others predict video beside the actions, which are held to what they are."""
        return self.predict_block(params, window, asked)

    def block_data(self, block: np.ndarray):
        """Arrays [B, ...] that depend on the block's number, made on the host."""
        return ()

    def place(self, params: dict) -> dict:
        """The parameters where they are computed with."""
        return params

    def blank_block(self) -> jax.Array | None:
        """What stands for the imagined block before there is one."""
        return None

    def gap(self, seen, imagined) -> jax.Array | None:
        """Root mean square of one episode's seen minus imagined latents; None where none are imagined."""
        return None

    # --- over sessions -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """See `Policy`."""
        ids = jax.ShapeDtypeStruct(self.inputs.tokenize("")[0].shape, jnp.int32)
        shapes = jax.eval_shape(self._begin, self._arrays, self.inputs.picture_shapes(), ids,
                                jax.ShapeDtypeStruct((), jnp.int32))
        # There is room for one session more: rows that fill up a batch write there.
        self._windows = jax.tree.map(lambda x: jnp.zeros((self.sessions + 1, *x.shape), x.dtype), shapes)

    def start(self, sessions, pictures, text_ids, text_length) -> None:
        """See `Policy`."""
        rows = self._filled(sessions, pictures, text_ids, text_length)
        self._windows = self._start(self._arrays, self._windows, *rows)

    def observe(self, sessions, pictures, actions, block) -> np.ndarray | None:
        """See `Policy`."""
        rows = self._filled(sessions, pictures, actions, block)
        self._windows, gap = self._observe(self._arrays, self._windows, *rows, self.block_data(rows[-1]))
        return None if gap is None else np.asarray(gap)[:len(sessions)]

    def act(self, sessions, *asked) -> Chunk:
        """See `Policy`."""
        return self._chunk(self._act, sessions, *asked)

    def label(self, sessions, *asked) -> Chunk:
        """See `Policy`."""
        return self._chunk(self._label, sessions, *asked)

    def imagine(self, sessions, *asked) -> Chunk:
        """See `Policy`."""
        return self._chunk(self._imagine, sessions, *asked)

    def decode(self, latents) -> np.ndarray:
        """See `Policy`."""
        return np.asarray(self._decode(self.frozen, latents))

    def _chunk(self, compiled, sessions, *asked) -> Chunk:
        where, *rows = self._filled(sessions, *asked)
        of_rows = Asked._make((*rows, self.block_data(rows[1])))
        self._windows, chunk = compiled(self._arrays, self._windows, where, of_rows)
        return jax.tree.map(lambda x: x[:len(sessions)], jax.device_get(chunk))

    def _filled(self, sessions, *rows) -> tuple:
        """(sessions, rows) up to the next compiled batch size: the first row again, in the spare session."""
        count = len(sessions)
        spare = next(size for size in sorted(self.batch_sizes) if size >= count) - count
        which = np.append(np.arange(count), np.zeros(spare, int))
        filled = jax.tree.map(lambda x: x[which], rows)
        return np.append(sessions, np.full(spare, self.sessions)).astype(np.int32), *filled

    def _start_rows(self, arrays, windows, sessions, *first) -> Window:
        new = jax.vmap(self._begin, in_axes=(None, *[0] * len(first)))(arrays, *first)
        return jax.tree.map(lambda all_, rows: all_.at[sessions].set(rows), windows, new)

    def _observe_rows(self, arrays, windows, sessions, *happened) -> tuple[Window, jax.Array | None]:
        rows = _rows(windows, sessions), *happened
        cache, gap = jax.vmap(self._observe_one, in_axes=(None, *[0] * len(rows)))(arrays, *rows)
        caches = jax.tree.map(lambda all_, new: all_.at[sessions].set(new), windows.cache, cache)
        return windows._replace(cache=caches), gap

    def _chunk_rows(self, rows, arrays, windows, sessions, asked: Asked) -> tuple[Window, Chunk]:
        chunk = rows(arrays[0], _rows(windows, sessions), asked)
        chunk = jax.tree.map(lambda x: x.astype(jnp.float32), chunk)
        if chunk.latents is not None:
            windows = windows._replace(imagined=windows.imagined.at[sessions].set(chunk.latents))
        return windows, chunk

    def _label_rows(self, params, *rows) -> Chunk:
        return _each(functools.partial(self.predict_block, params, video_given=True), *rows)

    def _imagine_rows(self, params, *rows) -> Chunk:
        return _each(functools.partial(self.imagine_block, params), *rows)

    def _begin(self, arrays, pictures, text_ids, text_length) -> Window:
        pictures = jax.tree.map(lambda x: x[None], pictures)
        params, frozen = arrays
        cache, episode = self.begin_episode(params, frozen, pictures, text_ids[None], jnp.reshape(text_length, 1))
        return Window(cache, episode, self.blank_block())

    def _observe_one(self, arrays, window: Window, pictures, actions, block, data):
        seen = self.inputs.encode_block(arrays[1], jax.tree.map(lambda x: x[None], pictures))
        cache = self.observe_block(arrays[0], window, seen, actions[None], block, data)
        return cache, self.gap(seen, window.imagined)


def _each(one, windows: Window, asked: Asked) -> Chunk:
    """one(...) of every session's row, whose results have an axis of one."""
    rows = windows, asked
    if len(asked.block) == 1:  # a row of vmap cannot save work by what is decided on the way (step_skipping.Adaptive)
        chunk = jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], rows)))
    else:
        chunk = jax.vmap(one)(*rows)
    return jax.tree.map(lambda x: x[:, 0], chunk)


def _rows(windows: Window, sessions) -> Window:
    return jax.tree.map(lambda x: x[sessions], windows)
