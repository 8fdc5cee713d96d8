"""Wan's autoencoders beside diffusers' on random weights; streams, tiles, and the published shapes."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from world_model.encoders import wan_vae_blocks
from world_model.encoders.tiling import ramp, starts, tiled
from world_model.encoders.wan_vae import WAN21, WAN22
from world_model.encoders.wan_video import WanVideo
from world_model.interop import encoder_names

SHAPES = Path(__file__).parent / "goldens/shapes"
SMALL = {"latent_channels": 4, "mean": (0.1, -0.2, 0.3, 0.0), "std": (1.5, 0.7, 2.0, 1.0)}
SPECS = {"wan21": dataclasses.replace(WAN21, **SMALL, encoder_dim=8, decoder_dim=8),
         "wan22": dataclasses.replace(WAN22, **SMALL, encoder_dim=8, decoder_dim=12)}


def oracle(spec):
    """diffusers' module of that description, random everywhere."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(
        base_dim=spec.encoder_dim, decoder_base_dim=spec.decoder_dim, z_dim=spec.latent_channels,
        is_residual=spec.shortcuts, patch_size=spec.patch if spec.patch > 1 else None,
        in_channels=3 * spec.patch**2, out_channels=3 * spec.patch**2, scale_factor_spatial=spec.spatial_stride)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("gamma"):
                p.uniform_(0.5, 1.5)
    return model.eval()


@functools.cache
def pair(name):
    """(codec, its arrays, diffusers' module with the same weights)."""
    model, spec = oracle(SPECS[name]), SPECS[name]
    table = encoder_names.vae(spec)["diffusers"]
    theirs = {key: p.detach().numpy() for key, p in model.state_dict().items()}
    assert theirs.keys() == {e.theirs for e in table.entries}
    params = {e.ours: jnp.asarray(e.transform.to_ours(theirs[e.theirs], 0)) for e in table.entries}
    return WanVideo(spec), params, model


def video(frames=9, height=32, width=48, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32)


def theirs(x):
    return torch.from_numpy(np.asarray(x)).permute(0, 4, 1, 2, 3)


def ours(x):
    return x.permute(0, 2, 3, 4, 1).numpy()


def relative(a, b):
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_as_diffusers(name):
    codec, params, model = pair(name)
    x, mean, std = video(), np.array(SMALL["mean"]), np.array(SMALL["std"])
    expected = ours(model.encode(theirs(x)).latent_dist.mode())
    latents = jax.jit(codec.encode)(params, x)
    assert latents.shape == (1, 3, 32 // codec.spatial_stride, 48 // codec.spatial_stride, 4)
    assert relative(latents * std + mean, expected) < 1e-4
    z = np.random.default_rng(1).normal(size=latents.shape).astype(np.float32)
    decoded = jax.jit(codec.decode)(params, z)
    assert relative(decoded, ours(model.decode(theirs(z * std.astype("f") + mean.astype("f"))).sample)) < 1e-4
    assert decoded.shape == x.shape and np.abs(decoded).max() <= 1


@pytest.mark.parametrize("name", SPECS)
def test_a_stream_is_one_pass(name):
    """All frames at once, two latents at a time with a rest, and chunks of uneven length by hand."""
    codec, params, _ = pair(name)
    x = video(frames=17)
    whole = dataclasses.replace(codec, chunk=0)
    latents = jax.jit(whole.encode)(params, x)
    looped = dataclasses.replace(codec, chunk=3)
    np.testing.assert_allclose(jax.jit(looped.encode)(params, x), latents, atol=2e-5)
    first, kept = codec.encode_chunk(params, x[:, :5])
    rest, _ = codec.encode_chunk(params, x[:, 5:], kept)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), latents, atol=2e-5)
    pixels = jax.jit(whole.decode)(params, latents)
    np.testing.assert_allclose(jax.jit(looped.decode)(params, latents), pixels, atol=2e-5)
    first, kept = codec.decode_chunk(params, latents[:, :2])
    rest, _ = codec.decode_chunk(params, latents[:, 2:], kept)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), pixels, atol=2e-5)


def test_what_a_stream_keeps_does_not_grow():
    codec, params, _ = pair("wan21")
    _, kept = jax.eval_shape(codec.encode_chunk, params, video(frames=1))
    _, later = jax.eval_shape(codec.encode_chunk, params, video(frames=16), kept)
    assert jax.tree.map(lambda x: x.shape, kept) == jax.tree.map(lambda x: x.shape, later)


@pytest.mark.parametrize("latent", [0, 1, 2])
def test_causal(latent):
    codec, params, _ = pair("wan21")
    changed = video()
    changed[:, 1 + 4 * latent:] = 0
    encode = jax.jit(codec.encode)
    difference = np.abs(encode(params, changed) - encode(params, video())).max((0, 2, 3, 4))
    assert (difference[:latent + 1] == 0).all() and (difference[latent + 1:] > 0).all()


def test_first_frame_followed_by_grey():
    codec, params, _ = pair("wan21")
    x = video()
    x[:, 1:] = 0
    first = jax.jit(codec.encode_first, static_argnums=2)(params, x[:, :1], 9)
    np.testing.assert_array_equal(first, jax.jit(codec.encode)(params, x))


@pytest.mark.parametrize("name", SPECS)
def test_bfloat16(name):
    codec, params, _ = pair(name)
    low = dataclasses.replace(codec, dtype="bfloat16")
    halved = {key: p.astype(jnp.bfloat16) for key, p in params.items()}
    x = video(frames=5)
    latents = jax.jit(low.encode)(halved, x)
    assert latents.dtype == jnp.float32
    assert relative(latents, np.asarray(jax.jit(codec.encode)(params, x))) < 0.1


def test_convolution_by_taps_is_the_convolution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 6, 5, 4)).astype(np.float32)
    for size, stride, padding in (((3, 3, 3), (1, 1, 1), ((1, 1), (1, 1))), ((1, 3, 3), (1, 2, 2), ((0, 1), (0, 1))),
                                  ((3, 1, 1), (2, 1, 1), ((0, 0), (0, 0)))):
        kernel = rng.normal(size=(*size, 4, 3)).astype(np.float32)
        np.testing.assert_allclose(wan_vae_blocks.by_taps(x, kernel, stride, padding),
                                   wan_vae_blocks.at_once(x, kernel, stride, padding), atol=1e-5)


def test_tiles_join_without_seams():
    """A function of each pixel alone comes back exactly; a tile far from the others is what it is alone."""
    x = np.random.default_rng(0).normal(size=(1, 2, 40, 56, 3)).astype(np.float32)
    shrink = lambda x: x.reshape(*x.shape[:2], x.shape[2] // 4, 4, x.shape[3] // 4, 4, 3).mean((3, 5))
    np.testing.assert_allclose(tiled(shrink, x, 6, 4, 1), shrink(x), atol=1e-6)
    np.testing.assert_allclose(tiled(lambda x: x.repeat(4, 2).repeat(4, 3), x, 16, 1, 4),
                               x.repeat(4, 2).repeat(4, 3), atol=1e-6)
    assert starts(44, 34) == [0, 10] and starts(80, 34) == [0, 23, 46] and starts(30, 34) == [0]
    weights = ramp(10, 8, 30, 2)
    assert weights.max() == 1 and (np.diff(weights[:5]) > 0).all() and (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1])


def test_tiled_frames():
    """Tiles of half the picture: near the whole in the corner that one tile covers, of the right shape all over."""
    codec, params, _ = pair("wan21")
    x = video(frames=1, height=64, width=64)
    small = dataclasses.replace(codec, tile=6)
    latents, whole = jax.jit(small.encode)(params, x), jax.jit(codec.encode)(params, x)
    alone = jax.jit(codec.encode)(params, x[:, :, :48, :48])
    np.testing.assert_allclose(latents[:, :, :2, :2], alone[:, :, :2, :2], atol=1e-5)
    assert latents.shape == whole.shape and relative(latents, np.asarray(whole)) < 0.5
    np.testing.assert_array_equal(dataclasses.replace(codec, tile=8).encode(params, x), codec.encode(params, x))
    assert jax.eval_shape(small.decode, params, whole).shape == x.shape


@pytest.mark.parametrize("name, spec, count", [("vae16", WAN21, 126_892_531), ("vae48", WAN22, 704_688_668)])
def test_published_shapes(name, spec, count):
    """Every name and shape of the original files, from the abstract model."""
    shapes = WanVideo(spec).shapes()
    listed = {key: tuple(shape) for key, shape in json.loads((SHAPES / f"{name}.json").read_text()).items()}
    table = encoder_names.vae(spec)["wan"]
    assert {key: x.shape for key, x in encoder_names.their_shapes(table, shapes).items()} == listed
    assert sum(math.prod(x.shape) for x in shapes.values()) == count


@pytest.mark.parametrize("shape", [(1, 8, 32, 32, 3), (1, 9, 30, 32, 3), (1, 9, 32, 36, 3)])
def test_sizes_that_do_not_divide(shape):
    codec, params, _ = pair("wan21")
    with pytest.raises(ValueError, match=rf"video of {shape[1]} frames, {shape[2]} x {shape[3]} pixels.*4k \+ 1"):
        codec.encode(params, np.zeros(shape, np.float32))
