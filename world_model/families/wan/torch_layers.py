"""Wan's transformer layer in plain PyTorch, under the original parameter names (extra: torch).

For running exported weights on GPUs behind a robot, and as a second opinion on the JAX model. Written for reading.
Shape letters as in world_model/batch.py; latents are channel-last.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.attention.visibility import Span
from world_model.diffusion.guidance import combine
from world_model.layers.embedders import frequencies_float32

EPS = 1e-6


def to_tensor(x, device: str = "cpu") -> Tensor | None:
    """A tensor of its own from an array of JAX or numpy; None stays None."""
    return None if x is None else torch.from_numpy(np.array(x)).to(device)


class RMSNorm(nn.Module):
    """RMS norm over the full width, before heads are split; the mean square is float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * self.weight


def norm(x: Tensor) -> Tensor:
    """Layer norm without weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)


def gelu_mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU("tanh"), nn.Linear(hidden, width_out))


def time_sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """float64 [..., width]: cosines, then sines."""
    half = width // 2
    frequency = 1e4 ** (-torch.arange(half, device=timesteps.device, dtype=torch.float64) / half)
    angle = timesteps.double()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def time_sinusoid_float32(timesteps: Tensor, width: int) -> Tensor:
    """`time_sinusoid` of float32 frequencies and angles, as diffusers' Timesteps forms them."""
    angle = timesteps.float()[..., None] * torch.from_numpy(frequencies_float32(width // 2)).to(timesteps.device)
    return torch.cat([angle.cos(), angle.sin()], -1)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """x [B, L, n, d], rotary float32 [2, L, d/2]: turns the pairs (2i, 2i + 1) by angle i, in float32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotary[0, :, None], rotary[1, :, None]
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, Lq, n, d] x [B, Lk, n, d] -> [B, Lq, n d]: every query sees every key."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def span_attention(spans: tuple[Span, ...]) -> Callable:
    """`attend` where each span's queries see its keys alone. No mask is made: masks rule out the fastest kernels."""
    ranges = tuple((span.queries, span.keys) for span in spans)
    order = [bounds for queries, _ in ranges for bounds in queries]
    return functools.partial(_attend_spans, ranges, tuple(sorted(range(len(order)), key=order.__getitem__)))


def _attend_spans(ranges: tuple, places: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ranges: (queries, keys) of each span, (start, stop) each; places: where the queries' ranges stand, in order."""
    parts = []
    for queries, keys in ranges:
        out = attend(_take(q, queries), _take(k, keys), _take(v, keys))
        parts += out.split([stop - start for start, stop in queries], 1)
    return torch.cat([parts[i] for i in places], 1)


def _take(x: Tensor, ranges: tuple) -> Tensor:
    """The rows of x [B, L, n, d] in the ranges."""
    parts = [x[:, start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class SelfAttention(nn.Module):
    """Projections; the norm of q and k is over all heads together."""

    def __init__(self, dim: int, num_heads: int, width: int | None = None):
        super().__init__()
        self.num_heads, width = num_heads, width or dim
        self.q, self.k, self.v = (nn.Linear(dim, width) for _ in range(3))
        self.o = nn.Linear(width, dim)
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)

    def heads(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, n, d]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def queries(self, x: Tensor, rotary: Tensor) -> Tensor:
        """Rotated queries."""
        return rotate(self.heads(self.norm_q(self.q(x))), rotary)

    def keys_values(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys, and values."""
        return rotate(self.heads(self.norm_k(self.k(x))), rotary), self.heads(self.v(x))


class CrossAttention(SelfAttention):
    """One query, a softmax over the text and, with an image context, another over the image; summed."""

    def __init__(self, dim: int, num_heads: int, has_image: bool):
        super().__init__(dim, num_heads)
        if has_image:
            self.k_img, self.v_img, self.norm_k_img = nn.Linear(dim, dim), nn.Linear(dim, dim), RMSNorm(dim)

    def forward(self, x: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
        q = self.heads(self.norm_q(self.q(x)))
        out = attend(q, self.heads(self.norm_k(self.k(text))), self.heads(self.v(text)))
        if image is not None:
            keys, values = self.heads(self.norm_k_img(self.k_img(image))), self.heads(self.v_img(image))
            out = out + attend(q, keys, values)
        return self.o(out)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A sequence: what it holds, where it stands, and how noisy it is."""

    x: Tensor  # [B, L, D]
    rotary: Tensor  # float32 [2, L, d/2]: cosines and sines
    timesteps: Tensor  # float32 [B, M], 0..1000
    rows: Tensor  # int64 [L]: the column of `timesteps` that each token has


def join(parts: list[Tokens]) -> Tokens:
    """One sequence after another."""
    offsets = [sum(p.timesteps.shape[1] for p in parts[:i]) for i in range(len(parts))]
    return Tokens(torch.cat([p.x for p in parts], 1), torch.cat([p.rotary for p in parts], 1),
                  torch.cat([p.timesteps for p in parts], 1),
                  torch.cat([p.rows + offset for p, offset in zip(parts, offsets, strict=True)]))


class Layer(nn.Module):
    """Modulated self-attention, cross-attention without a gate, modulated MLP. head_dim: as in
    world_model/layers/transformer.py."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, has_image: bool, head_dim: int | None = None):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        self.self_attn = SelfAttention(dim, num_heads, head_dim and num_heads * head_dim)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim, dim // head_dim if head_dim else num_heads, has_image)
        self.ffn = gelu_mlp(dim, ffn_dim, dim)

    def forward(self, x: Tensor, time: Tensor, tokens: Tokens, context: tuple, attention: Callable = attend,
                past: tuple[Tensor, Tensor] | None = None, read: slice = slice(None)
                ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """time [B, M, 6, D] -> (x of the tokens `read`, this sequence's keys and values); `past` stands before the own
        ones. attention: `attend`, or another function of queries, keys and values."""
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = (self.modulation + time).unbind(2)
        h, rows = norm(x) * (1 + scale[:, tokens.rows]) + shift[:, tokens.rows], tokens.rows[read]
        k, v = own = self.self_attn.keys_values(h, tokens.rotary)
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        attended = attention(self.self_attn.queries(h[:, read], tokens.rotary[:, read]), k, v)
        x = x[:, read] + gate[:, rows] * self.self_attn.o(attended)
        x = x + self.cross_attn(self.norm3(x), *context)
        return x + gate_ffn[:, rows] * self.ffn(norm(x) * (1 + scale_ffn[:, rows]) + shift_ffn[:, rows]), own


class Guided:
    """Guidance of a sampler that has `guidance` and `action_guidance`: both branches are one batch, the conditional one
    first."""

    guidance: float
    action_guidance: float

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch runs."""
        return (self.guidance, self.action_guidance) != (1, 1)

    def branches(self, conditional: Tensor, unconditional: Tensor | None) -> Tensor:
        """One batch of both. Raises ValueError where the unconditional one is needed and missing."""
        if not self.guided:
            return conditional
        if unconditional is None:
            raise ValueError("guidance other than 1 needs unconditional_text")
        return torch.cat([conditional, unconditional])

    def both(self, x: Tensor) -> Tensor:
        """x once per branch."""
        return torch.cat([x, x]) if self.guided else x

    def guide(self, velocity: Tensor, scale: float) -> Tensor:
        """One velocity from both branches' batch."""
        if not self.guided:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        return combine(conditional, unconditional, scale)
