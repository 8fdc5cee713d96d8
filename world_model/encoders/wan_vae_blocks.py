"""Layers of Wan's causal video autoencoders, channels last: [B, T, H, W, C] (sources: wan_vae.py).

A layer that looks back in time takes from a `Past` what it saw in the chunk before, and leaves what the next chunk
needs. In the first chunk frame 0 stands alone: before it are zeros, no layer halves it and none doubles it; so a
chunk of 1 + 4 k frames, then chunks of 4 k, give what one pass over all frames gives.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from world_model.attention.blockwise import dense
from world_model.encoders.convolution import convolve
from world_model.layers.transformer import linear


class Past:
    """What causal layers remember between chunks, in the order in which they run; latents: how many this chunk has."""

    def __init__(self, kept: tuple | None, latents: int):
        self.first, self._latents = kept is None, latents
        self._kept = iter(kept or ())
        self._next: list[jax.Array] = []

    def join(self, x, frames: int, padded: bool = True):
        """Puts the `frames` frames before x that precede it: the last chunk's; at first zeros, or none (not padded)."""
        if not self.first:
            x = jnp.concatenate([next(self._kept), x], axis=1)
        elif padded:
            x = jnp.pad(x, ((0, 0), (frames, 0), (0, 0), (0, 0), (0, 0)))
        self._next.append(x[:, -frames:])
        return x

    def together(self, frames: int) -> int:
        """How many of a layer's frames become one latent. Before the first latent has passed, frames go one by one."""
        return 1 if self.first else frames // self._latents

    def state(self) -> tuple:
        """What the next chunk needs."""
        return tuple(self._next)


class Kernel(nnx.Module):
    """The parameters of a convolution: kernel [t, h, w, inputs, outputs], bias [outputs]."""

    def __init__(self, size: tuple[int, int, int], inputs: int, outputs: int, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2, 3), out_axis=4)
        self.kernel = nnx.Param(init(rngs.params(), (*size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))


class Conv(Kernel):
    """A convolution of one picture, or over time of what it is given."""

    def __call__(self, x, stride=(1, 1, 1), padding=((0, 0), (0, 0))):
        return convolve(x, self.kernel[...], stride, padding) + self.bias[...]


class CausalConv(Kernel):
    """A convolution of 3 x 3 x 3 in which a frame sees itself and the two before it."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        super().__init__((3, 3, 3), inputs, outputs, rngs)

    def __call__(self, x, past: Past):
        joined, together, kernel = past.join(x, 2), past.together(x.shape[1]), self.kernel[...]
        if past.first and x.shape[1] == 1:  # frame 0 alone has zeros before it: one tap of three
            joined, kernel = x, kernel[2:]
        return convolve(joined, kernel, padding=((1, 1), (1, 1)), together=together) + self.bias[...]


class ChannelNorm(nnx.Module):
    """x / |x| * sqrt(C) * scale over the channels, in float32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
        return (y * x.shape[-1]**0.5).astype(x.dtype) * self.scale[...]


class ResidualBlock(nnx.Module):
    """Norm, SiLU and convolution, twice; the input is added, projected where the width changes."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.norm1, self.conv1 = ChannelNorm(inputs), CausalConv(inputs, outputs, rngs)
        self.norm2, self.conv2 = ChannelNorm(outputs), CausalConv(outputs, outputs, rngs)
        if inputs != outputs:
            self.shortcut = linear(inputs, outputs, rngs)

    def __call__(self, x, past: Past):
        h = self.conv1(nnx.silu(self.norm1(x)), past)
        h = self.conv2(nnx.silu(self.norm2(h)), past)
        return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class FrameAttention(nnx.Module):
    """Self-attention of one head inside each frame."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.norm = ChannelNorm(channels)
        self.qkv = linear(channels, 3 * channels, rngs)
        self.o = linear(channels, channels, rngs)

    def __call__(self, x):
        tokens = rearrange(self.qkv(self.norm(x)), "b t h w c -> (b t) (h w) 1 c")
        return x + self.o(dense(*jnp.split(tokens, 3, axis=-1)).reshape(x.shape))


class Middle(nnx.Module):
    """The middle of either side: residual block, attention, residual block."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.block0, self.block1 = (ResidualBlock(channels, channels, rngs) for _ in range(2))
        self.attention = FrameAttention(channels, rngs)

    def __call__(self, x, past: Past):
        return self.block1(self.attention(self.block0(x, past)), past)


class Downsample(nnx.Module):
    """Halves rows and columns and, where `temporal`, the frames after frame 0."""

    def __init__(self, channels: int, temporal: bool, rngs: nnx.Rngs):
        self.conv = Conv((1, 3, 3), channels, channels, rngs)
        if temporal:
            self.time_conv = Conv((3, 1, 1), channels, channels, rngs)

    def __call__(self, x, past: Past):
        x = self.conv(x, stride=(1, 2, 2), padding=((0, 1), (0, 1)))
        if not hasattr(self, "time_conv"):
            return x
        joined = past.join(x, 1, padded=False)
        if joined.shape[1] == 1:
            return x
        halved = self.time_conv(joined, stride=(2, 1, 1))
        return jnp.concatenate([x[:, :1], halved], axis=1) if past.first else halved


class Upsample(nnx.Module):
    """Doubles rows and columns and, where `temporal`, the frames after frame 0."""

    def __init__(self, inputs: int, outputs: int, temporal: bool, rngs: nnx.Rngs):
        if temporal:
            self.time_conv = Conv((3, 1, 1), inputs, 2 * inputs, rngs)
        self.conv = Conv((1, 3, 3), inputs, outputs, rngs)

    def __call__(self, x, past: Past):
        if hasattr(self, "time_conv"):
            x = self.double_time(x, past)
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3), padding=((1, 1), (1, 1)))

    def double_time(self, x, past: Past):
        """Doubles the frames; frame 0 stays one, and the frames after it begin from zeros."""
        alone, rest = (x[:, :1], x[:, 1:]) if past.first else (None, x)
        joined = past.join(rest, 2)
        if not rest.shape[1]:
            return x
        doubled = rearrange(self.time_conv(joined), "b t h w (r c) -> b (t r) h w c", r=2)
        return doubled if alone is None else jnp.concatenate([alone, doubled], axis=1)


def average_down(x, outputs: int, time: int, space: int):
    """The shortcut past a `Downsample`: cells of time x space x space go to channels, whose groups are averaged. Frame
    0 is the second of its pair."""
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "b (t r) (h p) (w q) c -> b t h w (c r p q)", r=time, p=space, q=space)
    return x.reshape(*x.shape[:-1], outputs, -1).mean(axis=-1)


def duplicate_up(x, outputs: int, time: int, space: int, first: bool):
    """The shortcut past an `Upsample`: channels, repeated as needed, go to cells of time x space x space."""
    x = jnp.repeat(x, outputs * time * space**2 // x.shape[-1], axis=-1)
    x = rearrange(x, "b t h w (c r p q) -> b (t r) (h p) (w q) c", r=time, p=space, q=space)
    return x[:, time - 1:] if first else x
