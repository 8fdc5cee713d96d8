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

from world_model.encoders import convolution
from world_model.encoders import names as encoder_names
from world_model.encoders.tiling import ramp, starts, tiled
from world_model.encoders.wan_vae import WAN21, WAN22
from world_model.encoders.wan_video import WanVideo, _in_chunks

SHAPES = Path(__file__).parent / "goldens/shapes"
SMALL = {"latent_channels": 4, "mean": (0.1, -0.2, 0.3, 0.0), "std": (1.5, 0.7, 2.0, 1.0), "blocks": 1}
SPECS = {"wan21": dataclasses.replace(WAN21, **SMALL, encoder_dim=8, decoder_dim=8),
         "wan22": dataclasses.replace(WAN22, **SMALL, encoder_dim=8, decoder_dim=12),
         "wan21_middle": dataclasses.replace(WAN21, encoder_dim=24, decoder_dim=24),  # 8 M weights
         "wan22_middle": dataclasses.replace(WAN22, encoder_dim=24, decoder_dim=36)}  # 15 M
FRAMES, SIDE = 13, 32


def oracle(spec):
    """diffusers' module of that description."""
    return AutoencoderKLWan(
        base_dim=spec.encoder_dim, decoder_base_dim=spec.decoder_dim, z_dim=spec.latent_channels,
        num_res_blocks=spec.blocks, is_residual=spec.shortcuts, patch_size=spec.patch if spec.patch > 1 else None,
        in_channels=3 * spec.patch**2, out_channels=3 * spec.patch**2, scale_factor_spatial=spec.spatial_stride)


@functools.cache
def pair(name):
    """(codec, its arrays, diffusers' module with the same weights), random everywhere."""
    torch.manual_seed(0)
    spec = SPECS[name]
    model = oracle(spec).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("gamma"):
                p.uniform_(0.5, 1.5)
    tensors = {key: p.detach().numpy() for key, p in model.state_dict().items()}
    table = encoder_names.vae(spec)["diffusers"]
    assert tensors.keys() == {e.published for e in table.entries}
    params = {e.native: jnp.asarray(e.transform.to_native(tensors[e.published], 0)) for e in table.entries}
    return WanVideo(spec), params, model


@functools.cache
def jitted(name, method, **changes):
    """A method of the codec with some fields changed: compiled once for all tests."""
    return jax.jit(getattr(dataclasses.replace(pair(name)[0], **changes), method))


def video(frames=FRAMES, side=SIDE):
    return np.random.default_rng(0).uniform(-1, 1, (1, frames, side, side, 3)).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.asarray(x, np.float32)).permute(0, 4, 1, 2, 3)


def channels_last(x):
    return x.permute(0, 2, 3, 4, 1).numpy()


def relative(a, b):
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_as_diffusers(name):
    """Tiny: all frames at once; middle, at the published depth: frame 0 and a stretch after it."""
    codec, params, model = pair(name)
    frames, chunk = (5, 1) if name.endswith("middle") else (FRAMES, 0)
    x, mean, std = video(frames), np.array(codec.spec.mean), np.array(codec.spec.std)
    latents = jitted(name, "encode", chunk=chunk)(params, x)
    side = SIDE // codec.spatial_stride
    assert latents.shape == (1, 1 + frames // 4, side, side, codec.channels)
    assert relative(latents * std + mean, channels_last(model.encode(channels_first(x)).latent_dist.mode())) < 1e-4
    z = np.random.default_rng(1).normal(size=latents.shape).astype(np.float32)
    decoded = jitted(name, "decode", chunk=chunk)(params, z)
    assert relative(decoded, channels_last(model.decode(channels_first(z * std + mean)).sample)) < 1e-4
    assert decoded.shape == x.shape and np.abs(decoded).max() <= 1


def test_a_stream_is_one_pass():
    """One latent at a time gives what all frames at once give. The layers of wan21 are all in wan22."""
    _, params, _ = pair("wan22")
    latents = jitted("wan22", "encode", chunk=0)(params, video())
    np.testing.assert_allclose(jitted("wan22", "encode", chunk=1)(params, video()), latents, atol=2e-5)
    np.testing.assert_allclose(jitted("wan22", "decode", chunk=1)(params, latents),
                               jitted("wan22", "decode", chunk=0)(params, latents), atol=2e-5)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7])
def test_chunks_that_do_not_divide(size):
    """A running sum that keeps its last value, two frames in for one out after the first."""
    def step(x, kept):
        first, rest = (x[:, :1], x[:, 1:]) if kept is None else (kept[0][:, None], x)
        sums = first + jnp.cumsum(rest, axis=1)
        return (sums[:, 1::2] if kept else jnp.concatenate([first, sums[:, 1::2]], axis=1)), ((
            sums[:, -1] if rest.shape[1] else first[:, 0]),)

    x = np.random.default_rng(0).normal(size=(2, 11, 3)).astype(np.float32)
    np.testing.assert_allclose(_in_chunks(step, x, 2 * size), np.cumsum(x, axis=1)[:, ::2], atol=1e-5)


def test_what_a_stream_keeps_does_not_grow():
    codec, params, _ = pair("wan21")
    _, kept = jax.eval_shape(codec.encode_chunk, params, video(1))
    latents, later = jax.eval_shape(codec.encode_chunk, params, video(16), kept)
    assert latents.shape[1] == 4
    assert jax.tree.map(lambda x: x.shape, kept) == jax.tree.map(lambda x: x.shape, later)


@pytest.mark.parametrize("latent, chunk", [(0, 0), (1, 0), (2, 0), (1, 1)])
def test_causal(latent, chunk):
    """A latent does not depend by a bit on later frames, also where frames are computed together."""
    params, encode = pair("wan21")[1], jitted("wan21", "encode", chunk=chunk)
    changed = video()
    changed[:, 1 + 4 * latent:] = 0
    difference = np.abs(encode(params, changed) - encode(params, video())).max((0, 2, 3, 4))
    assert (difference[:latent + 1] == 0).all() and (difference[latent + 1:] > 0).all()


def test_first_frame_followed_by_grey(monkeypatch):
    codec, params, _ = pair("wan21")
    monkeypatch.setattr(WanVideo, "encode", lambda self, params, video: video)
    first = codec.encode_first(params, video(1), FRAMES)
    assert first.shape == video().shape and (first[:, 1:] == 0).all() and (first[:, :1] == video(1)).all()


def test_bfloat16():
    _, params, _ = pair("wan21")
    halved = {key: p.astype(jnp.bfloat16) for key, p in params.items()}
    latents = jitted("wan21", "encode", chunk=0, dtype="bfloat16")(halved, video())
    assert latents.dtype == jnp.float32
    assert relative(latents, np.asarray(jitted("wan21", "encode", chunk=0)(params, video()))) < 0.1


@pytest.mark.parametrize("size, stride, padding, together", [
    ((3, 3, 3), (1, 1, 1), ((1, 1), (1, 1)), (1, 2, 4)), ((1, 3, 3), (1, 2, 2), ((0, 1), (0, 1)), (1,)),
    ((3, 1, 1), (2, 1, 1), ((0, 0), (0, 0)), (1,))])
def test_convolution_by_pictures_is_the_convolution(size, stride, padding, together):
    """Sums of taps and short convolutions of two and of four frames give the same; in bfloat16 too."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(*size, 4, 3)).astype(np.float32)
    x = rng.normal(size=(2, 7 * stride[0] + size[0], 6, 5, 4)).astype(np.float32)  # makes 8 frames
    low = [jnp.asarray(a, jnp.bfloat16) for a in (x, kernel)]
    expected, expected_low = (convolution.at_once(*pair, stride, padding) for pair in ((x, kernel), low))
    for count in together:
        found = convolution.by_pictures(x, kernel, stride, padding, count)
        assert found.shape == expected.shape and found.shape[1] == 8
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        found = convolution.convolve(*low, stride, padding, count)
        assert found.dtype == expected_low.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(np.float32), expected_low.astype(np.float32), rtol=1e-2, atol=1e-2)
    on_a_gpu = convolution.by_pictures(*low, stride, padding)  # each tap is rounded
    assert on_a_gpu.dtype == jnp.bfloat16
    np.testing.assert_allclose(on_a_gpu.astype(np.float32), expected_low.astype(np.float32),
                               atol=1e-2 * np.abs(expected).max())


def test_a_gpu_convolves_pictures_in_bfloat16_channels_last():
    """In three dimensions XLA makes them float32, channels first."""
    x, kernel = jnp.zeros((1, 6, 8, 8, 4), jnp.bfloat16), jnp.zeros((3, 3, 3, 4, 4), jnp.bfloat16)
    traced = jax.jit(lambda x, k: convolution.convolve(x, k, padding=((1, 1), (1, 1)))).trace(x, kernel)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3 and all("-> tensor<4x8x8x4xbf16>" in line and "[b, 0, 1, f]" in line for line in lines)


def test_tiles_join_without_seams():
    """A function of each pixel alone comes back exactly; a tile far from the others is what it is alone."""
    x = np.random.default_rng(0).normal(size=(1, 2, 40, 56, 3)).astype(np.float32)

    def shrink(x):
        return x.reshape(*x.shape[:2], x.shape[2] // 4, 4, x.shape[3] // 4, 4, 3).mean((3, 5))

    np.testing.assert_allclose(tiled(shrink, x, 6, 4, 1), shrink(x), atol=1e-6)
    np.testing.assert_allclose(tiled(lambda x: x.repeat(4, 2).repeat(4, 3), x, 16, 1, 4),
                               x.repeat(4, 2).repeat(4, 3), atol=1e-6)
    assert starts(44, 34) == [0, 10] and starts(80, 34) == [0, 23, 46] and starts(30, 34) == [0]
    weights = ramp(10, 8, 30, 2)
    assert weights.max() == 1 and (np.diff(weights[:5]) > 0).all() and (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1])


def test_tiled_frames():
    """The corner that one tile alone covers is what that tile gives; all over the shape is that of the whole."""
    codec, params, _ = pair("wan21")
    x = video(1, side=64)
    latents = jitted("wan21", "encode", tile=6)(params, x)
    alone = jitted("wan21", "encode", tile=8)(params, x[:, :, :48, :48])
    np.testing.assert_allclose(latents[:, :, :2, :2], alone[:, :, :2, :2], atol=1e-5)
    assert latents.shape == (1, 1, 8, 8, 4) and np.isfinite(latents).all()
    small = dataclasses.replace(codec, tile=6)
    assert jax.eval_shape(small.decode, params, latents).shape == x.shape


@pytest.mark.parametrize("name, spec, count", [("vae16", WAN21, 126_892_531), ("vae48", WAN22, 704_688_668)])
def test_published_shapes(name, spec, count):
    """Every name and shape of the original files and of diffusers' module, from the abstract model."""
    shapes, tables = WanVideo(spec).shapes(), encoder_names.vae(spec)

    def shape_of(tensors):
        return {key: tuple(x.shape) for key, x in tensors.items()}

    listed = {key: tuple(shape) for key, shape in json.loads((SHAPES / f"{name}.json").read_text()).items()}
    assert shape_of(encoder_names.published_shapes(tables["wan"], shapes)) == listed
    with torch.device("meta"):
        model = oracle(spec)
    assert shape_of(encoder_names.published_shapes(tables["diffusers"], shapes)) == shape_of(model.state_dict())
    assert sum(math.prod(x.shape) for x in shapes.values()) == count


@pytest.mark.parametrize("shape", [(1, 8, 32, 32, 3), (1, 9, 30, 32, 3), (1, 9, 32, 36, 3)])
def test_sizes_that_do_not_divide(shape):
    codec, params, _ = pair("wan21")
    with pytest.raises(ValueError, match=rf"video of {shape[1]} frames, {shape[2]} x {shape[3]} pixels.*4k \+ 1"):
        codec.encode(params, np.zeros(shape, np.float32))
