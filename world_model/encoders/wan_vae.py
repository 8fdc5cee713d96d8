"""Wan's causal video autoencoders, both by one description: Wan2.1 (16 channels, 4 x 8 x 8) and Wan2.2 (48 channels,
4 x 16 x 16: pixels folded 2 x 2 first, and averaging shortcuts past every change of size).

Frame 0 is one latent, and so are every four frames after it. Source: Wan-Video/Wan2.1 at 9737cba, wan/modules/vae.py,
and Wan-Video/Wan2.2 at 42bf4cf, wan/modules/vae2_2.py; docs/references/encoders.md.
"""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from world_model.encoders.wan_vae_blocks import (
    CausalConv,
    ChannelNorm,
    Downsample,
    Middle,
    Past,
    ResidualBlock,
    Upsample,
    average_down,
    duplicate_up,
)
from world_model.layers.transformer import linear

TEMPORAL = 4  # frames per latent after the first


@dataclasses.dataclass(frozen=True)
class WanVaeSpec:
    """Sizes; hashable."""

    latent_channels: int
    mean: tuple[float, ...]  # mean of the latents, by channel
    std: tuple[float, ...]
    encoder_dim: int
    decoder_dim: int
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # width of each stage; the stages but the last halve the picture
    blocks: int = 2  # residual blocks per stage; the decoder has one more
    temporal: tuple[bool, ...] = (False, True, True)  # which stages halve time
    patch: int = 1  # pixels folded into channels on either side
    shortcuts: bool = False  # averaging shortcuts past stages

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel."""
        return self.patch * 2 ** len(self.temporal)

    def down(self) -> Iterator[tuple[int, int, bool, bool]]:
        """Yields (inputs, outputs, halves the picture, halves time) of the encoder's stages."""
        widths = [self.encoder_dim * m for m in (1, *self.multipliers)]
        yield from zip(widths[:-1], widths[1:], [True] * len(self.temporal) + [False], (*self.temporal, False),
                       strict=True)

    def up(self) -> Iterator[tuple[int, int, int, bool, bool]]:
        """Yields (inputs, outputs, width handed on, doubles the picture, doubles time) of the decoder's stages. Without
        shortcuts a stage hands on half its width."""
        inputs = self.decoder_dim * self.multipliers[-1]
        for i, m in enumerate(reversed(self.multipliers)):
            last, outputs = i == len(self.temporal), self.decoder_dim * m
            handed = outputs if self.shortcuts or last else outputs // 2
            yield inputs, outputs, handed, not last, not last and self.temporal[-1 - i]
            inputs = handed


WAN21 = WanVaeSpec(
    latent_channels=16, encoder_dim=96, decoder_dim=96,
    mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
          -0.1922, -0.9497, 0.2503, -0.2921),
    std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
         1.1253, 2.8251, 1.9160))
WAN22 = WanVaeSpec(
    latent_channels=48, encoder_dim=160, decoder_dim=256, patch=2, shortcuts=True,
    mean=(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
          0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
          -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
          -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    std=(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885,
         0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338,
         0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458,
         1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744))


class Stage(nnx.Module):
    """Residual blocks and, where a stage has it, `resample`."""

    def make_blocks(self, inputs: int, outputs: int, count: int, rngs: nnx.Rngs) -> None:
        self.blocks = count
        for i in range(count):
            setattr(self, f"block{i}", ResidualBlock(outputs if i else inputs, outputs, rngs))

    def run_blocks(self, x, past: Past):
        for i in range(self.blocks):
            x = getattr(self, f"block{i}")(x, past)
        return self.resample(x, past) if hasattr(self, "resample") else x


class DownStage(Stage):
    """A stage of residual blocks, then half the size."""

    def __init__(self, inputs: int, outputs: int, blocks: int, spatial: bool, temporal: bool, shortcut: bool,
                 rngs: nnx.Rngs):
        self.shortcut = (outputs, 1 + temporal, 1 + spatial) if shortcut else None
        self.make_blocks(inputs, outputs, blocks, rngs)
        if spatial:
            self.resample = Downsample(outputs, temporal, rngs)

    def __call__(self, x, past: Past):
        h = self.run_blocks(x, past)
        return h + average_down(x, *self.shortcut) if self.shortcut else h


class UpStage(Stage):
    """A stage of residual blocks, then twice the size."""

    def __init__(self, inputs: int, outputs: int, handed: int, blocks: int, spatial: bool, temporal: bool,
                 shortcut: bool, rngs: nnx.Rngs):
        self.shortcut = (handed, 1 + temporal, 1 + spatial) if shortcut and spatial else None
        self.make_blocks(inputs, outputs, blocks, rngs)
        if spatial:
            self.resample = Upsample(outputs, handed, temporal, rngs)

    def __call__(self, x, past: Past):
        h = self.run_blocks(x, past)
        return h + duplicate_up(x, *self.shortcut, past.first) if self.shortcut else h


class Encoder(nnx.Module):
    """Makes means and log variances of folded pixels."""

    def __init__(self, spec: WanVaeSpec, rngs: nnx.Rngs):
        stages = list(spec.down())
        self.stages, width = len(stages), stages[-1][1]
        self.conv_in = CausalConv(3 * spec.patch**2, spec.encoder_dim, rngs)
        for i, (inputs, outputs, spatial, temporal) in enumerate(stages):
            setattr(self, f"stage{i}", DownStage(inputs, outputs, spec.blocks, spatial, temporal, spec.shortcuts, rngs))
        self.middle = Middle(width, rngs)
        self.norm_out = ChannelNorm(width)
        self.conv_out = CausalConv(width, 2 * spec.latent_channels, rngs)

    def __call__(self, x, past: Past):
        x = self.conv_in(x, past)
        for i in range(self.stages):
            x = getattr(self, f"stage{i}")(x, past)
        x = self.middle(x, past)
        return self.conv_out(nnx.silu(self.norm_out(x)), past)


class Decoder(nnx.Module):
    """Makes folded pixels of latents."""

    def __init__(self, spec: WanVaeSpec, rngs: nnx.Rngs):
        stages = list(spec.up())
        self.stages = len(stages)
        self.conv_in = CausalConv(spec.latent_channels, stages[0][0], rngs)
        self.middle = Middle(stages[0][0], rngs)
        for i, (inputs, outputs, handed, spatial, temporal) in enumerate(stages):
            setattr(self, f"stage{i}", UpStage(inputs, outputs, handed, spec.blocks + 1, spatial, temporal,
                                               spec.shortcuts, rngs))
        self.norm_out = ChannelNorm(stages[-1][2])
        self.conv_out = CausalConv(stages[-1][2], 3 * spec.patch**2, rngs)

    def __call__(self, x, past: Past):
        x = self.middle(self.conv_in(x, past), past)
        for i in range(self.stages):
            x = getattr(self, f"stage{i}")(x, past)
        return self.conv_out(nnx.silu(self.norm_out(x)), past)


class WanVae(nnx.Module):
    """The whole autoencoder, a chunk of frames at a time; `kept` is None for the first chunk, then what the last call
    returned."""

    def __init__(self, spec: WanVaeSpec, rngs: nnx.Rngs):
        self.spec = spec
        self.encoder, self.decoder = Encoder(spec, rngs), Decoder(spec, rngs)
        self.to_latent = linear(2 * spec.latent_channels, 2 * spec.latent_channels, rngs)
        self.from_latent = linear(spec.latent_channels, spec.latent_channels, rngs)

    def encode(self, pixels, kept: tuple | None):
        """[B, 1 + 4k or 4k, H, W, 3] in [-1, 1] -> (normalised means, float32 [B, 1 + k or k, h, w, C], kept)."""
        past = Past(kept, -(-pixels.shape[1] // TEMPORAL))
        # channel, column, row: the published order inside a folded pixel
        x = rearrange(pixels, "b t (h p) (w q) c -> b t h w (c q p)", p=self.spec.patch, q=self.spec.patch)
        moments = self.to_latent(self.encoder(x, past)).astype(jnp.float32)
        mean = moments[..., :self.spec.latent_channels]
        return (mean - jnp.array(self.spec.mean)) / jnp.array(self.spec.std), past.state()

    def decode(self, latents, kept: tuple | None):
        """Normalised latents [B, 1 + k or k, h, w, C] -> (float32 [B, 1 + 4k or 4k, H, W, 3] in [-1, 1], kept)."""
        past = Past(kept, latents.shape[1])
        latents = latents * jnp.array(self.spec.std) + jnp.array(self.spec.mean)
        x = self.from_latent(latents.astype(self.from_latent.kernel.dtype))
        x = self.decoder(x, past).astype(jnp.float32)
        x = rearrange(x, "b t h w (c q p) -> b t (h p) (w q) c", p=self.spec.patch, q=self.spec.patch)
        return jnp.clip(x, -1, 1), past.state()
