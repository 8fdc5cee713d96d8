"""The tokens that are looked at before actions: which exist, where they stand, and who sees whom.

The prefix is [views] [each view's depth queries] [text] [queries], the suffix behind it [state] [actions]. A view that
is missing and text past its length keep their places in the array and are masked. Nobody in the prefix sees the suffix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.families.lingbot_vla.spec import MERGE, LingBotVLASpec


class Tokens(NamedTuple):
    """Attributes of a run of tokens."""

    valid: jax.Array  # bool [B, L]
    positions: jax.Array  # int32 [axes, B, L]: of a line, or time, row and column


def prefix_tokens(spec: LingBotVLASpec, view_mask, text_length) -> Tokens:
    """view_mask bool [B, V], text_length int [B] -> the prefix."""
    per_view = spec.view_tokens + len(spec.view_markers)
    words = jnp.arange(spec.text_length) < text_length[:, None]
    queries = jnp.ones((len(view_mask), spec.queries), bool)
    views = (jnp.repeat(view_mask, count, axis=1) for count in (per_view, spec.depth_queries))
    valid = jnp.concatenate([*views, words, queries], axis=1)
    if not spec.rope_sections:
        return Tokens(valid, (jnp.cumsum(valid, axis=1) - 1)[None])
    return Tokens(valid, jnp.where(valid, _grid_positions(spec, view_mask, words), 1))


def _grid_positions(spec: LingBotVLASpec, view_mask, words):
    """int32 [3, B, Lp]: a view's pictures stand on a grid behind its first marker, the next token behind the farthest
    row or column (arXiv 2409.12191, section 2.1); missing views take no room."""
    inside, length = view_positions(spec)
    before = length * (jnp.cumsum(view_mask, axis=1) - view_mask)  # [B, V]
    views = before[None, :, :, None] + jnp.asarray(inside)[:, None, None]
    text = length * view_mask.sum(axis=1, keepdims=True) + jnp.arange(spec.text_length)
    queries = (length * view_mask.sum(axis=1) + words.sum(axis=1))[:, None] + jnp.arange(spec.queries)
    line = jnp.broadcast_to(jnp.concatenate([text, queries], axis=1), (3, len(text), text.shape[1] + spec.queries))
    return jnp.concatenate([views.reshape(3, len(text), -1), line], axis=2)


def view_positions(spec: LingBotVLASpec) -> tuple[np.ndarray, int]:
    """(int [3, tokens] of a view's tokens, with its markers, counted from where it begins; the positions it takes)."""
    rows, columns = spec.grid[0] // MERGE, spec.grid[1] // MERGE
    marked, length = bool(spec.view_markers), max(rows, columns) + len(spec.view_markers)
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    inside = int(marked) + np.stack([np.zeros_like(r), r, c]).reshape(3, -1)
    if marked:
        inside = np.concatenate([np.zeros((3, 1), int), inside, np.full((3, 1), length - 1)], axis=1)
    return inside, length


def suffix_positions(prefix: Tokens, count: int):
    """int32 [axes, B, count], behind the last token of the prefix that exists, on all axes."""
    first = jnp.where(prefix.valid, prefix.positions, -1).max(axis=(0, 2)) + 1
    positions = first[:, None] + jnp.arange(count)
    return jnp.broadcast_to(positions, (len(prefix.positions), *positions.shape))


def prefix_mask(spec: LingBotVLASpec, valid):
    """bool [B, Lp, Lp] (query, key): `seen_in_prefix` among the tokens that exist."""
    return valid[:, :, None] & valid[:, None] & seen_in_prefix(spec)


def prefix_rows(spec: LingBotVLASpec, valid):
    """`prefix_mask`, or bool [B, 1, Lp] where all that exist see the same: a kernel then needs no mask of pairs. What a
    token that does not exist sees has no meaning."""
    alike = spec.prefix == "joint" and not spec.depth_queries
    return valid[:, None] if alike else prefix_mask(spec, valid)


def seen_in_prefix(spec: LingBotVLASpec) -> np.ndarray:
    """bool [Lp, Lp] (query, key): all tokens, or those before; but a view's depth queries see their view and each other
    alone, and no other token of the prefix sees them."""
    seen = np.ones((spec.prefix_tokens,) * 2, bool)
    if spec.prefix == "causal":
        return np.tril(seen)
    view, depth = np.full(len(seen), -1), np.zeros(len(seen), bool)  # a token's view; whether it is a depth query
    view[:spec.depth_tokens.start] = np.repeat(np.arange(spec.views), spec.depth_tokens.start // spec.views)
    view[spec.depth_tokens], depth[spec.depth_tokens] = np.repeat(np.arange(spec.views), spec.depth_queries), True
    return np.where(depth[:, None], view[:, None] == view, ~depth)


def suffix_mask(spec: LingBotVLASpec, valid, actions: int):
    """bool [B, 1 + actions, Lp + 1 + actions]: the state sees the prefix and itself, actions see all; of the queries
    for the future only where model.actions_see_future."""
    hidden = 0 if spec.actions_see_future else spec.query_tokens
    prefix = valid & (np.arange(valid.shape[1]) < valid.shape[1] - hidden)
    own = np.ones((1 + actions, 1 + actions), bool)
    own[0, 1:] = False
    return jnp.concatenate([jnp.repeat(prefix[:, None], 1 + actions, axis=1),
                            jnp.broadcast_to(own, (len(valid), *own.shape))], axis=2)


def rotary_table(spec: LingBotVLASpec, positions):
    """float32 [2, B, L, d/2]: cosines and sines of positions int [axes, B, L], formed in float32 as published."""
    frequency, axis = frequencies(spec)
    angles = jnp.moveaxis(positions.astype(jnp.float32)[axis], 0, -1) * frequency
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def frequencies(spec: LingBotVLASpec) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [d/2], the axis that each turns with).

    With three axes, their frequencies are interleaved: every third is a row's, every third a column's, the rest time's
    (Qwen3-VL; model.rope_sections says how many each has).
    """
    half = spec.head_dim // 2
    axis = np.zeros(half, int)
    for which in range(1, len(spec.rope_sections)):
        axis[which:3 * spec.rope_sections[which]:3] = which
    return 1 / spec.rope_theta ** (np.arange(half, dtype=np.float32) / half), axis
