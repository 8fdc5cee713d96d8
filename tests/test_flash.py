"""The TPU's attention kernel and its list of tiles against masks of all pairs: segments as they come, segments and keys
masked out, several samples, a mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from world_model.attention import flash, flash_kernel
from world_model.attention.tiles import FULL, PADDING, SKIP, Tiles
from world_model.parallel import remat, sharding

TILE, COUNT, SEGMENTS = 128, 384, 50
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tiles():
    """Three tiles a side, the last of many short segments; no query of the second tile sees the first tile of keys, and
    the last 20 keys are padding."""
    segments = np.sort(np.concatenate([np.zeros(TILE), np.full(TILE, 1), rng.integers(2, SEGMENTS, TILE)])).astype(int)
    keys = np.where(np.arange(COUNT) < COUNT - 20, segments, PADDING)
    seen = (rng.random((SEGMENTS, SEGMENTS)) < 0.5) | np.eye(SEGMENTS, dtype=bool)
    seen[:2] = np.eye(2, SEGMENTS, dtype=bool)
    return Tiles(seen, segments, keys, (TILE, TILE))


@functools.cache
def masks():
    """(valid bool [B, Lk], segment_mask bool [segments, segments])."""
    valid = rng.random((2, COUNT)) < 0.8
    valid[0, :TILE], valid[1, :TILE] = True, False
    return valid, (rng.random((SEGMENTS, SEGMENTS)) < 0.7) | np.eye(SEGMENTS, dtype=bool)


def dense(tiles, valid=None, segment_mask=None):
    """bool [1 or B, Lq, Lk]."""
    seen = np.pad(tiles.seen if segment_mask is None else tiles.seen & np.asarray(segment_mask), ((0, 0), (0, 1)))
    mask = seen[tiles.queries][:, tiles.keys][None]
    return mask if valid is None else mask & np.asarray(valid)[:, None]


CALLS = {"static": (), "keys": (0,), "segments": (1,), "both": (0, 1)}


def chosen(which):
    return {name: masks()[i] for i, name in enumerate(("valid", "segment_mask")) if i in CALLS[which]}


@pytest.mark.parametrize("which", CALLS)
def test_words_and_codes_say_who_sees_whom(tiles, which):
    found, mask = tiles.visible(**chosen(which)), dense(tiles, **chosen(which))
    words, codes = np.asarray(found.words).repeat(TILE, axis=0), np.asarray(found.codes)  # [Lk, W, Lq], [G, W, Lk]
    assert tiles.words == 2
    meet = ((words.transpose(2, 1, 0) & codes[:, None]) != 0).any(axis=2)
    np.testing.assert_array_equal(meet, mask)
    blocks = mask.reshape(-1, 3, TILE, 3, TILE).transpose(0, 1, 3, 2, 4)[:, tiles.rows, tiles.columns]
    np.testing.assert_array_equal(np.asarray(found.kinds) == FULL, blocks.all(axis=(-2, -1)))
    assert not blocks[np.asarray(found.kinds) == SKIP].any()
    if which == "static":
        np.testing.assert_array_equal(np.asarray(found.kinds) == SKIP, ~blocks.any(axis=(-2, -1)))
        assert tiles.computed == len(tiles.rows) == dense(tiles).reshape(3, TILE, 3, TILE).any(axis=(1, 3)).sum() < 9


def attention(tiles, q, k, v, **given):
    """By scores of all pairs; zeros where a query sees no key."""
    mask = dense(tiles, **given)[:, None]
    scores = jnp.where(mask, jnp.einsum("bqnd,bknd->bnqk", q, k) * q.shape[-1] ** -0.5, -1e30)
    return jnp.einsum("bnqk,bknd->bqnd", jax.nn.softmax(scores) * mask.any(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("which, shape, pieces", [
    ("static", {}, False), ("both", {}, True), ("both", {"data": 2, "tensor": 2, "context": 2}, False)],
    ids=["static", "masks, gradients in pieces", "masks, mesh"])
def test_the_kernel_equals_dense_attention_with_its_gradients(tiles, which, shape, pieces, monkeypatch):
    if pieces:
        monkeypatch.setattr(flash_kernel, "GRADIENT_MEMORY", TILE * 2 * 8 * 12)
        assert [len(piece.queries) for piece in tiles.pieces(2 * TILE)] == [2 * TILE, TILE]
    *qkv, weight = (jax.random.normal(key, (2, COUNT, 4, 8)) for key in jax.random.split(jax.random.key(0), 4))

    def run(attend):
        def value(*qkv):
            out = attend(tiles, *qkv, **chosen(which))
            return (out * weight).sum(), out

        return jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(*qkv)

    expected = run(attention)
    with jax.set_mesh(sharding.make_mesh(**shape)) if shape else contextlib.nullcontext():
        actual = run(functools.partial(flash.sharded, interpret=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, expected)


@pytest.mark.parametrize("policy, kept", [("full", 0), ("lean", 2)])
def test_output_and_log_sum_exp_are_kept_under_their_name(tiles, policy, kept, capsys):
    def attend(q):
        return flash.sharded(tiles, q, q, q, name=remat.ATTENDED, interpret=True).sum()
    jax.ad_checkpoint.print_saved_residuals(remat.remat(attend, policy), jnp.ones((1, COUNT, 1, 8)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "from a constant" not in line]
    assert len(lines) == 1 + kept and sum(f"named '{remat.ATTENDED}'" in line for line in lines) == kept, lines
