"""Noise tables against the goldens, and the rules and distributions of the three training schedules."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from world_model.diffusion import flow_matching as fm

GOLDEN = np.load(Path(__file__).parent / "goldens" / "dreamzero_i2v_tiny.npz", allow_pickle=False)
SHAPE = dict(num_blocks=3, frames_per_block=2, actions_per_block=4)
SAMPLES = 20_000


def sample(schedule, alpha=3.0, beta=1.0):
    def one(key):
        return fm.sample_levels(key, **SHAPE, schedule=schedule, alpha=alpha, beta=beta)

    video, action = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), SAMPLES))
    return np.asarray(video), np.asarray(action)


def test_tables_equal_goldens():
    levels = fm.noise_levels(shift=5.0)
    np.testing.assert_allclose(levels.sigmas, GOLDEN["sched/fm_sigmas"], atol=1e-6)
    np.testing.assert_allclose(levels.timesteps, GOLDEN["sched/fm_timesteps"], atol=2e-4)
    np.testing.assert_allclose(levels.weights, GOLDEN["sched/fm_linear_timesteps_weights"], atol=5e-6)
    found = levels.weights[fm.nearest_level(levels, GOLDEN["sched/fm_weight_query"])]
    np.testing.assert_allclose(found, GOLDEN["sched/fm_weight_at_query"], atol=5e-6)


def test_noised_inputs_equal_goldens():
    levels = fm.noise_levels()
    for data, noise, index, noisy in [
        ("in/latents", "in/noise", "in/t_id", "in/noisy"),
        ("in/action", "in/noise_action", "in/ta_id", "in/noisy_action"),
    ]:
        clean, noise = GOLDEN[data], GOLDEN[noise]
        if clean.ndim == 5:  # channels first in the goldens
            clean, noise = np.moveaxis(clean, 1, -1), np.moveaxis(noise, 1, -1)
        expected = np.moveaxis(GOLDEN[noisy], 1, -1) if clean.ndim == 5 else GOLDEN[noisy]
        sigma = levels.sigmas[GOLDEN[index]]
        found = fm.add_noise(clean, noise, sigma)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        restored = found - sigma.reshape(sigma.shape + (1,) * (clean.ndim - sigma.ndim)) * fm.velocity(clean, noise)
        np.testing.assert_allclose(restored, clean, atol=2e-6)


def test_shift_one_is_the_papers_data_time():
    levels = fm.noise_levels(shift=1.0)
    np.testing.assert_allclose(levels.sigmas, 1 - np.arange(1000) / 1000, atol=1e-7)
    assert fm.nearest_level(levels, jnp.array([1000.0, 500.2, 0.0])).tolist() == [0, 500, 999]


@pytest.mark.parametrize("schedule", fm.SCHEDULES)
def test_frames_of_a_block_share_and_blocks_are_independent(schedule):
    video, action = sample(schedule)
    assert video.dtype == action.dtype == np.int32
    assert video.shape == (SAMPLES, 7) and action.shape == (SAMPLES, 12)
    assert video.min() >= 0 and video.max() <= 999
    blocks = video[:, 1:].reshape(SAMPLES, 3, 2)
    assert (blocks[..., 0] == blocks[..., 1]).all()
    groups = np.column_stack([video[:, 0], blocks[..., 0]])
    correlation = np.corrcoef(groups.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.03  # the first frame's level is its own too


@pytest.mark.parametrize("schedule", ["coupled", "high_noise"])
def test_coupled_actions_take_their_blocks_level(schedule):
    video, action = sample(schedule)
    np.testing.assert_array_equal(action, np.repeat(video[:, 1::2], 4, axis=1))


def test_decoupled_actions_are_uniform_per_token_and_independent_of_the_video():
    video, action = sample("decoupled")
    assert _ks(action.ravel(), np.arange(1000)) < 0.01
    assert np.abs(np.corrcoef(np.column_stack([video[:, 1], action[:, :4]]).T) - np.eye(5)).max() < 0.03


def test_coupled_levels_are_uniform():
    video, _ = sample("coupled")
    assert _ks(video[:, ::2].ravel(), np.arange(1000)) < 0.01


@pytest.mark.parametrize("schedule", ["high_noise", "decoupled"])
@pytest.mark.parametrize("alpha, beta", [(7.0, 1.0), (3.0, 1.0), (2.0, 2.5)])
def test_beta_levels(schedule, alpha, beta):
    video, _ = sample(schedule, alpha, beta)
    r = 1 - (video[:, ::2].ravel() + 0.5) / 1000
    np.testing.assert_allclose(r.mean(), alpha / (alpha + beta), atol=0.005)
    variance = alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    np.testing.assert_allclose(r.var(), variance, rtol=0.03)
    reference = 1 - np.random.default_rng(0).beta(alpha, beta, 200_000)
    assert _ks(video[:, ::2].ravel(), np.minimum(reference * 1000, 999).astype(int)) < 0.01


def test_levels_depend_on_the_samples_key_alone():
    def one(key):
        return fm.sample_levels(key, **SHAPE, schedule="decoupled", alpha=3.0, beta=1.0)

    keys, sample_all = jax.random.split(jax.random.key(1), 8), jax.jit(jax.vmap(one))
    whole, part = sample_all(keys), sample_all(keys[5:])
    for a, b in zip(whole, part):
        np.testing.assert_array_equal(a[5:], b)


def test_unknown_schedule_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"noise.schedule = 'flash'.*coupled, high_noise, decoupled"):
        fm.sample_levels(jax.random.key(0), **SHAPE, schedule="flash", alpha=3.0, beta=1.0)


def _ks(found, reference):
    """Kolmogorov-Smirnov distance of two sets of integers in 0..999."""
    cumulative = [np.cumsum(np.bincount(index, minlength=1000)) / index.size for index in (found, reference)]
    return np.abs(cumulative[0] - cumulative[1]).max()


def test_one_level_has_weight_one():
    levels = fm.noise_levels(5.0, 1)
    assert levels.sigmas.tolist() == levels.weights.tolist() == [1.0]
