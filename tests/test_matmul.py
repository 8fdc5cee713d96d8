"""int8 products: close to the plain ones on the way forward, their gradients on the way back, in blocks alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_dreamzero import example, mean_square
from world_model.batch import Layout
from world_model.families import make_model
from world_model.layers import matmul


def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, gradient = (jax.random.normal(key, shape) for key, shape in zip(keys, ((2, 5, 64), (64, 24), (2, 5, 24))))
    return x.at[0, 0].set(0.0), kernel, gradient  # a token of zeros has no scale


def test_int8_is_within_its_rounding():
    x, kernel, _ = arrays()
    expected, found = matmul.plain(x, kernel), jax.jit(matmul.int8)(x, kernel)
    # Two roundings, each uniform over a step of 1 / 127 of the largest of about 3 standard deviations.
    error = np.std(found - expected) / np.std(expected)
    assert 0.002 < error < 0.02
    np.testing.assert_array_equal(found[0, 0], 0)


def test_gradients_are_those_of_the_plain_product():
    *inputs, gradient = arrays()
    _, plain = jax.vjp(matmul.plain, *inputs)
    _, rounded = jax.vjp(matmul.int8, *inputs)
    jax.tree.map(np.testing.assert_array_equal, plain(gradient), rounded(gradient))


def test_numbers_and_scales_are_the_array():
    x, _, _ = arrays()
    numbers, scales = matmul.rounded(x, axis=-1)
    assert numbers.dtype == jnp.int8 and scales.shape == (2, 5, 1)
    assert (np.abs(numbers * scales - x) <= scales / 2 + 1e-7).all()


def test_an_unknown_product_lists_the_names():
    with pytest.raises(ValueError, match="train.matmul = 'int4': there are plain, int8"):
        matmul.get_product("int4")


def test_blocks_alone_multiply_in_int8_and_the_loss_is_nearly_the_same():
    def make(name):
        return make_model(
            "dreamzero", layout=Layout(9, 32, 32, 2, 8, 1), latent_height=4, latent_width=4, dim=32, ffn_dim=64,
            num_heads=4, num_layers=2, freq_dim=16, latent_channels=16, concat_first_frame=True, text_dim=16,
            text_length=8, image_dim=0, image_tokens=0, action_dim=4, state_dim=4, action_hidden_dim=16, matmul=name)

    params = make("plain").init_params(jax.random.key(0))
    batch = example(make("plain").spec, 2) | {}
    batch["inputs"].pop("image")
    step = {name: jax.jit(jax.value_and_grad(lambda p, name=name: mean_square(make(name), p, batch)))
            for name in matmul.PRODUCTS}
    assert "i8>" not in step["plain"].lower(params).as_text()
    # A scanned block and the last one; the last one's queries are fewer, its products as many.
    assert step["int8"].lower(params).as_text().count("tensor<32x64xi8>") > 0
    (plain, expected), (rounded, found) = step["plain"](params), step["int8"](params)
    assert plain != rounded
    np.testing.assert_allclose(rounded, plain, rtol=1e-2)
    whole, gradient = (np.concatenate([np.ravel(tree[name]) for name in expected]) for tree in (found, expected))
    assert np.linalg.norm(whole - gradient) < 0.02 * np.linalg.norm(gradient)  # 0.0098 with these weights
    for name in expected:  # 0.082 at most: small biases of queries and keys
        assert np.linalg.norm(found[name] - expected[name]) <= 0.1 * np.linalg.norm(expected[name]), name
