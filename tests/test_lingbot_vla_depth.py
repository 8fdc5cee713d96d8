"""Depth queries of LingBot-VLA's first version: who sees them, what is learned of them, the same in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import lingbot_vla_4b
from launch.setup.experiment import Experiment
from tests import tiny_policy
from world_model.families.lingbot_vla.model import random_seeds, time_sinusoid
from world_model.families.lingbot_vla.prefix import prefix_mask, prefix_tokens, suffix_mask
from world_model.families.lingbot_vla.torch.network import load_network
from world_model.families.lingbot_vla.weights.names import TABLES
from world_model.functional import bind
from world_model.weights import names

pytestmark = pytest.mark.usefixtures("quick_compiles")
BATCH, Q = 2, 2
VIEW_MASK, TEXT_LENGTH = np.array([[True, True], [False, True]]), np.array([64, 5])


def model_of(**sizes):
    config = lingbot_vla_4b.get_config("debug")
    config.model.update({"depth_queries": Q, "query_seeds": 6, **sizes})
    return Experiment(config).model


def params_of(model) -> dict:
    return tiny_policy._weights(model.shapes, np.random.default_rng(0))


def arguments(spec) -> tuple:
    """What `encode_prefix` takes."""
    rng = np.random.default_rng(1)
    patches = rng.normal(size=(BATCH, spec.views, spec.patches, spec.patch_values)).astype(np.float32)
    return patches, VIEW_MASK, rng.integers(0, 256, (BATCH, spec.text_length)), TEXT_LENGTH


def suffix(spec) -> tuple:
    """(state, noisy actions, times)."""
    rng = np.random.default_rng(2)
    return (rng.normal(size=(BATCH, spec.state_dim)).astype(np.float32),
            rng.normal(size=(BATCH, spec.layout.actions_per_block, spec.action_dim)).astype(np.float32),
            np.array([0.3, 0.8], np.float32))


def velocity(model, params):
    network = bind(model.module, params)
    return network.velocity(network.encode_prefix(*arguments(model.spec)), *suffix(model.spec))[0]


def test_a_view_s_queries_see_it_and_each_other_and_only_state_and_actions_see_them():
    spec = model_of().spec
    n = spec.view_tokens
    kinds = [("view", v) for v in range(2) for _ in range(n)] + [("depth", v) for v in range(2) for _ in range(Q)]
    kinds += [("text", None)] * spec.text_length
    tokens = prefix_tokens(spec, jnp.asarray(VIEW_MASK), jnp.asarray(TEXT_LENGTH))
    valid = np.array([[(row[view] if kind != "text" else i - len(kinds) + spec.text_length < length)
                       for i, (kind, view) in enumerate(kinds)] for row, length in zip(VIEW_MASK, TEXT_LENGTH)])
    np.testing.assert_array_equal(tokens.valid, valid)
    np.testing.assert_array_equal(tokens.positions[0], valid.cumsum(axis=1) - 1)
    expected = np.array([[a[1] == b[1] if a[0] == "depth" else b[0] != "depth" for b in kinds] for a in kinds])
    expected = valid[:, :, None] & valid[:, None] & expected
    np.testing.assert_array_equal(prefix_mask(spec, tokens.valid), expected)
    np.testing.assert_array_equal(suffix_mask(spec, tokens.valid, 8)[:, 0, :-8], np.pad(valid, ((0, 0), (0, 1)),
                                                                                       constant_values=True))


def test_queries_are_learned_or_random_for_ever():
    """Random ones are no parameter; as parameters the same numbers give the same actions."""
    learned, fixed = model_of(), model_of(depth_queries_learned=False)
    params = params_of(learned) | {"depth_seeds": random_seeds(learned.spec)}
    gradient = jax.jit(jax.grad(lambda p: jnp.square(velocity(learned, p)).sum()))(params)["depth_seeds"]
    assert np.abs(gradient).max(axis=1).min() > 0
    assert learned.shapes.keys() - fixed.shapes.keys() == {"depth_seeds"}
    expected = jax.jit(lambda p: velocity(learned, p))(params)
    del params["depth_seeds"]
    np.testing.assert_allclose(jax.jit(lambda p: velocity(fixed, p))(params), expected, atol=1e-5)


@pytest.mark.parametrize("learned", [True, False])
@torch.no_grad()
def test_pytorch_computes_the_same(learned):
    model = model_of(depth_queries_learned=learned)
    params, spec = params_of(model), model.spec
    published = dict(names.to_published(params, spec.head_dim, TABLES[spec.vision]))
    assert ("depth_align_embs" in published) == learned
    network = load_network(published.items(), spec)
    prefix = network.encode_prefix(*map(torch.from_numpy, arguments(spec)))
    state, actions, time = suffix(spec)
    condition = torch.from_numpy(np.array(time_sinusoid(time, spec.expert_dim)))
    found = network.velocity(prefix, torch.from_numpy(state), torch.from_numpy(actions), condition)
    np.testing.assert_allclose(found, jax.jit(lambda p: velocity(model, p))(params), atol=2e-5)


@pytest.mark.parametrize("sizes, message", [
    ({"prefix": "causal"}, "model.depth_queries = 2: version 1's, in a prefix that is joint"),
    ({"query_seeds": 7}, "model.query_seeds = 7 does not divide into model.depth_queries = 2 groups")])
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        model_of(**sizes)
