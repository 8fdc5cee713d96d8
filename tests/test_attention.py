"""Every kernel against the dense reference, forward and backward, with keys taken away per sample."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from world_model.attention import KERNELS, blockwise, context, cudnn, flash, make_attend, ring, tokens, visibility
from world_model.attention.blockwise import dense
from world_model.attention.tokens import NOISY_ACTION, NOISY_VIDEO, STATE
from world_model.batch import Layout
from world_model.families.dreamzero.layout import GROUPS
from world_model.families.dreamzero.visibility import TABLES
from world_model.families.lingbot_va.layout import LingBotVASpec, make_sequence
from world_model.families.lingbot_va.visibility import TABLES as LINGBOT_VA_TABLES
from world_model.parallel import sharding

LAYOUT = Layout(frames=17, height=8, width=8, frames_per_block=2, actions_per_block=8, states_per_block=2)
SEQUENCE = tokens.make_sequence(LAYOUT, 5, [(g, range(3)) for g in GROUPS])


def arrays(seed=0, batch=3, heads=2, width=8):
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = (batch, tokens.length(SEQUENCE), heads, width)
    q, k, v, weight = (jax.random.normal(key, shape) for key in keys)
    valid = np.ones(shape[:2], bool)
    for s in SEQUENCE:
        if s.group in (NOISY_ACTION, STATE):
            valid[0, s.start:s.stop] = False
        elif s.block == 2:
            valid[1, s.start:s.stop] = False
    return (q, k, v), weight, jnp.asarray(valid)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The TPU kernel runs here step by step, cuDNN's spans through XLA."""
    monkeypatch.setitem(KERNELS, "flash", functools.partial(flash.make_attend, interpret=True))
    spans = functools.partial(cudnn.flash, implementation="xla")
    monkeypatch.setitem(KERNELS, "cudnn", functools.partial(blockwise.make_attend, attention=spans))


@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"reference"}))
@pytest.mark.parametrize("table, masked", [("dreamzero_state_sees_all", False), ("dreamzero", True)])
def test_kernel_equals_reference(kernel, table, masked):
    (q, k, v), weight, valid = arrays()
    visible = visibility.dense_mask(visibility.get_table(table, TABLES), SEQUENCE, SEQUENCE, window_frames=3)
    sighted = (visible & np.asarray(valid)[:, None, :]).any(axis=-1)  # a blind query's output has no meaning
    weight = weight * sighted[..., None, None] if masked else weight
    assert not masked or (sighted.mean() > 0.5 and not sighted.all())

    def run(name):
        attend = make_attend(name, visibility.get_table(table, TABLES), SEQUENCE, SEQUENCE, window_frames=3)

        def value(*qkv):
            out = attend(*qkv, valid if masked else None)
            return (out * weight).sum(), out

        grads, out = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        assert np.isfinite(out).all()
        return grads, out * (weight != 0)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run(kernel), run("reference"))


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_an_invalid_key_has_no_influence_at_all(kernel):
    (q, k, v), _, valid = arrays()
    attend = make_attend(kernel, visibility.get_table("dreamzero", TABLES), SEQUENCE, SEQUENCE)
    poisoned = jnp.where(valid[..., None, None], v, 1e6)
    video = jnp.array([i for s in SEQUENCE if s.group is NOISY_VIDEO for i in range(s.start, s.stop)])
    np.testing.assert_array_equal(attend(q, k, v, valid)[0, video], attend(q, k, poisoned, valid)[0, video])


def test_unknown_kernel_lists_the_names():
    with pytest.raises(ValueError, match="blockwise"):
        make_attend("ring", visibility.get_table("dreamzero", TABLES), SEQUENCE, SEQUENCE)


@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"reference"}))
def test_drawn_pairs_equal_the_reference(kernel):
    """Block size and window drawn at run time, forward and backward, also with keys taken away; compiled once."""
    spec = LingBotVASpec(
        layout=Layout(frames=25, height=8, width=8, frames_per_block=1, actions_per_block=4, states_per_block=1),
        latent_height=16, latent_width=20, dim=16, ffn_dim=8, num_heads=2, num_layers=2, freq_dim=8, latent_channels=4,
        text_dim=8, text_length=4, action_dim=3, max_chunk_frames=3)
    sequence, table = make_sequence(spec, 4), visibility.get_table("lingbot_va", LINGBOT_VA_TABLES)
    assert any(len(span.rows) > 1 for span in visibility.make_spans(table, sequence, sequence, least=128))
    q, k, v, weight = (jax.random.normal(key, (2, tokens.length(sequence), 2, 8))
                       for key in jax.random.split(jax.random.key(0), 4))
    valid = jnp.ones(q.shape[:2], bool).at[0, sequence[4].start:sequence[5].stop].set(False)

    def make(name):
        attend = make_attend(name, table, sequence, sequence)

        @jax.jit
        def run(size, window):
            drawn = visibility.sampled_mask(table, sequence, sequence, size - 1, window)
            def value(*qkv):
                return (attend(*qkv, valid, drawn) * weight).sum()
            return attend(q, k, v, valid, drawn), jax.grad(value, argnums=(0, 1, 2))(q, k, v)

        return run

    found, expected = make(kernel), make("reference")
    for drawn in ((1, 64), (2, 3), (3, 1)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found(*drawn), expected(*drawn))
    assert found._cache_size() == 1


@pytest.mark.parametrize("shape", [{}, {"data": 2, "tensor": 2, "context": 2}], ids=["one device", "mesh"])
@pytest.mark.parametrize("keys", [128, 37])
def test_the_fused_cross_attention_equals_the_dense_one(shape, keys):
    q, k, v, weight = (jax.random.normal(key, (2, tokens_, 4, 8))
                       for key, tokens_ in zip(jax.random.split(jax.random.key(0), 4), (300, keys, keys, 300), strict=True))
    def value(attend):
        return jax.jit(jax.value_and_grad(lambda *qkv: (attend(*qkv) * weight).sum(), argnums=(0, 1, 2)))
    expected = value(dense)(q, k, v)
    with jax.set_mesh(sharding.make_mesh(**shape)) if shape else contextlib.nullcontext():
        actual = value(functools.partial(context.fused, interpret=True))(q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), actual, expected)


@pytest.mark.parametrize("make", [functools.partial(make_attend, "blockwise"), flash.make_attend],
                         ids=["tokens as they come", "arranged"])
def test_where_heads_do_not_divide_keys_go_round(make):
    """Three heads over four shares of the tokens, beside two rows of the batch; both kinds of masks."""
    (q, k, v), weight, valid = arrays(batch=2, heads=3)
    valid = valid[:2]
    table = visibility.get_table("dreamzero", TABLES)
    drawn = jnp.asarray(np.random.default_rng(0).random((len(SEQUENCE), len(SEQUENCE))) < 0.8) | np.eye(len(SEQUENCE), dtype=bool)
    sighted = (visibility.dense_mask(table, SEQUENCE, SEQUENCE) & np.asarray(valid)[:, None]).any(axis=-1)
    weight = weight * sighted[..., None, None]

    def run(make):
        attend = make(table, SEQUENCE, SEQUENCE)
        def value(*qkv):
            return sum((attend(*qkv, valid, mask) * weight).sum() for mask in (None, drawn))
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(q, k, v)

    expected = run(KERNELS["reference"])
    with jax.set_mesh(sharding.make_mesh(data=2, context=4)):
        assert ring.needed(3) and not ring.needed(4)
        actual = run(make)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), actual, expected)
