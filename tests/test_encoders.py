"""The contracts of video codec and text encoder, on the embedded ones."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from world_model.encoders import make_text_encoder, make_video_codec

CODEC = make_video_codec("patch_pca", channels=16)
TEXT = make_text_encoder("hash", text_length=6, text_dim=256)


def moving_squares(count, frames=9, size=32, seed=0):
    """uint8 [count, frames, size, size, 3]: a square of some colour on a grey that differs by clip."""
    rng = np.random.default_rng(seed)
    videos = np.empty((count, frames, size, size, 3), np.uint8)
    for video in videos:
        video[:] = rng.integers(160, 255)
        colour, corner, speed = rng.integers(0, 120, 3), rng.uniform(4, 16, 2), rng.uniform(-1, 1, 2)
        for t, frame in enumerate(video):
            row, column = (corner + t * speed).astype(int)
            frame[row:row + 9, column:column + 9] = colour
    return videos


@pytest.fixture(scope="module")
def params():
    return CODEC.init(lambda: moving_squares(24))


@pytest.fixture(scope="module")
def video():
    return moving_squares(6, seed=1).astype(np.float32) / 127.5 - 1


def psnr(a, b):
    return -10 * np.log10(np.mean((np.asarray(a) - b) ** 2) / 4)


def test_shapes_strides_and_normalisation(params, video):
    latents = jax.jit(CODEC.encode)(params, video)
    assert latents.shape == (6, 3, 4, 4, 16) and latents.dtype == jnp.float32
    assert CODEC.decode(params, latents).shape == video.shape
    training = CODEC.encode(params, moving_squares(24).astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(training.mean((0, 1, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(training.var((0, 1, 2, 3)).mean(), 1, atol=1e-2)


def test_reconstruction(params, video):
    """The codec is far better than the best single patch (the mean), on clips it was not fitted on."""
    decoded = CODEC.decode(params, CODEC.encode(params, video))
    assert psnr(decoded, video) > psnr(video.mean((0, 1, 2, 3)), video) + 8
    assert np.abs(decoded).max() <= 1


@pytest.mark.parametrize("latent", [0, 1, 2])
def test_causal(params, video, latent):
    """A latent sees no later frame, nor the group before it; changing its own frames changes it."""
    changed = np.array(video)
    changed[:, 1 + 4 * latent:] = 0
    difference = np.abs(CODEC.encode(params, changed) - CODEC.encode(params, video)).max((0, 2, 3, 4))
    assert (difference[:latent + 1] == 0).all() and (difference[latent + 1:] > 0).all()


def test_a_still_scene_has_the_same_latent_in_both_kinds(params, video):
    still = CODEC.encode(params, np.repeat(video[:, :1], 9, axis=1))
    moving = CODEC.encode(params, video)
    np.testing.assert_allclose(still[:, 1], still[:, 2], atol=1e-5)
    turn = jnp.square(still[:, 1:] - still[:, :1]).mean()
    assert turn < 0.3 * jnp.square(moving[:, 1:] - moving[:, :1]).mean()


def test_constant_clips_give_finite_latents():
    flat = np.full((2, 5, 16, 16, 3), 128, np.uint8)
    params = CODEC.init(lambda: flat)
    latents = CODEC.encode(params, flat.astype(np.float32) / 127.5 - 1)
    assert np.abs(latents).max() < 0.1


@pytest.mark.parametrize("shape", [(1, 8, 32, 32, 3), (1, 9, 30, 32, 3), (1, 9, 32, 36, 3)])
def test_sizes_that_do_not_divide(params, shape):
    with pytest.raises(ValueError, match=rf"video of {shape[1]} frames, {shape[2]} x {shape[3]} pixels.*4k \+ 1"):
        CODEC.encode(params, np.zeros(shape, np.float32))


def test_a_codec_is_not_fitted_on_stills():
    with pytest.raises(ValueError, match="clips of 1 frame"):
        CODEC.init(lambda: np.zeros((2, 1, 16, 16, 3), np.uint8))


def test_tokenize():
    ids, length = TEXT.tokenize("Push the T, gently")
    assert (ids.dtype, ids.shape, length) == (np.int32, (6,), 5)
    assert (ids[:5] > 0).all() and ids[5] == 0 and len(set(ids[:5])) == 5
    assert ids[0] == TEXT.tokenize("push")[0][0] == 1 + 0x5F3A1664 % (2**31 - 1)  # stable: CRC-32 of "push"
    assert pickle.loads(pickle.dumps(TEXT)).tokenize("a b")[1] == 2


def test_prompt_too_long_names_itself_and_the_limit():
    with pytest.raises(ValueError, match=r"'one two three.*has 7 tokens, model.text_length = 6"):
        TEXT.tokenize("one two three four five six seven")


def test_text_features():
    prompts = [TEXT.tokenize(p) for p in ("push the block", "pull the block back", "")]
    ids, length = np.stack([p[0] for p in prompts]), np.array([p[1] for p in prompts], np.int32)
    features = jax.jit(TEXT.encode)({}, ids, length)
    assert features.shape == (3, 6, 256) and features.dtype == jnp.float32
    for row, n in zip(features, length):
        assert (row[n:] == 0).all() and (row[:n] != 0).any(axis=-1).all()
    np.testing.assert_array_equal(features[0, 1:3], features[1, 1:3])  # the same word is the same vector
    push, pull = features[0, 0], features[1, 0]
    assert abs(push @ pull) < 0.3 * (push @ push)
    many = np.arange(1, 6001, dtype=np.int32).reshape(1000, 6)
    spread = TEXT.encode({}, many, np.full(1000, 6, np.int32))
    np.testing.assert_allclose([spread.mean(), spread.std()], [0, 1], atol=0.01)
    correlation = np.corrcoef(np.asarray(spread).reshape(6000, 256)[:, :32].T) - np.eye(32)
    assert np.abs(correlation).max() < 0.06


def test_unknown_names():
    with pytest.raises(ValueError, match=r"encoders.video = 'wan': expected one of patch_pca"):
        make_video_codec("wan", channels=16)
    with pytest.raises(ValueError, match=r"encoders.text = 't5': expected one of hash"):
        make_text_encoder("t5", text_length=1, text_dim=1)
