"""Layers of LingBot-VLA in plain PyTorch, whose modules are called as they are published (extra: torch).

What is float32 in the JAX model is float32 here in any dtype: norms' sums, rotations, routers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.layers.norms import EPS

KeysValues = tuple[Tensor, Tensor]  # [B, L, kv heads, d] each; keys are rotated


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over the last axis; the mean square is float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight


class RMSNorm(nn.Module):
    """`rms_norm` with its weight."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class AdaptiveNorm(nn.Module):
    """(1 + gamma(c)) norm(x) + beta(c)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.gamma, self.beta = nn.Parameter(torch.empty(dim)), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return (1 + self.gamma(condition)[:, None]) * rms_norm(x, self.weight) + self.beta(condition)[:, None]


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, ffn_dim: int, bias: bool = False):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, ffn_dim, bias) for _ in range(2))
        self.down_proj = nn.Linear(ffn_dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Every expert on every token, weighted by zero where it was not chosen.

    A chunk's few tokens choose nearly all experts, so that all are read in any case, and with shapes that no choice
    changes no step waits for one. On a CPU this is experts / experts_per_token times the work.
    """

    def __init__(self, count: int, dim: int, ffn_dim: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Parameter(torch.empty(count, ffn_dim, dim)) for _ in range(2))
        self.down_proj = nn.Parameter(torch.empty(count, dim, ffn_dim))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [n, D], weights [n, E] -> [n, D]."""
        hidden = F.silu(x @ self.gate_proj.mT) * (x @ self.up_proj.mT)  # [E, n, ffn]
        return (hidden @ self.down_proj.mT * weights.T[..., None]).sum(0)


class MixtureOfExperts(nn.Module):
    """Routed experts, and one shared by all tokens (families/lingbot_vla/moe.py)."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        self.top, self.scale, dim = spec.experts_per_token, spec.routed_scale, spec.expert_dim
        self.gate = nn.Linear(dim, spec.experts, bias=False)
        self.e_score_correction_bias = nn.Parameter(torch.empty(spec.experts))
        self.experts = Experts(spec.experts, dim, spec.routed_ffn_dim)
        self.shared_expert = GatedMlp(dim, spec.shared_ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        scores = F.linear(x.float(), self.gate.weight.float()).sigmoid()
        chosen = (scores + self.e_score_correction_bias.float()).topk(self.top, -1).indices
        weights = scores.gather(-1, chosen)
        weights = weights / weights.sum(-1, keepdim=True) * self.scale
        weights = torch.zeros_like(scores).scatter(-1, chosen, weights).to(x.dtype)
        return self.experts(x.flatten(0, 1), weights.flatten(0, 1)).view_as(x) + self.shared_expert(x)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x [B, L, n, d], table float32 [2, B or 1, L, d/2] of cosines and sines: turns the pairs (i, i + d/2)."""
    cosine, sine = table[..., None, :]
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L, n, d] x [B, Lk, kv heads, d] -> [B, L, n d]; mask bool [B or 1, L, Lk], True where seen."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None]
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    """Projections of one stream."""

    def __init__(self, spec: LingBotVLASpec, dim: int, bias: bool, norm: bool):
        super().__init__()
        width, own, shared = spec.head_dim, spec.num_heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, n, bias) for n in (own, shared, shared))
        self.o_proj = nn.Linear(own, dim, bias=False)
        self.width, self.norm = width, norm
        if norm:
            self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)

    def keys_values(self, x: Tensor, table: Tensor) -> KeysValues:
        k, v = (project(x).unflatten(-1, (-1, self.width)) for project in (self.k_proj, self.v_proj))
        return rotate(self.k_norm(k) if self.norm else k, table), v

    def forward(self, x: Tensor, table: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.width))
        return self.o_proj(attend(rotate(self.q_norm(q) if self.norm else q, table), keys, values, mask))


class LanguageLayer(nn.Module):
    """A layer of Qwen's language model."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(spec.dim), RMSNorm(spec.dim)
        self.self_attn = Attention(spec, spec.dim, spec.qkv_bias, spec.qk_norm)
        self.mlp = GatedMlp(spec.dim, spec.ffn_dim)

    def keys_values(self, x: Tensor, table: Tensor) -> KeysValues:
        """All that others need of a last layer."""
        return self.self_attn.keys_values(self.input_layernorm(x), table)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor) -> tuple[Tensor, KeysValues]:
        h = self.input_layernorm(x)
        own = self.self_attn.keys_values(h, table)
        x = x + self.self_attn(h, table, *own, mask)
        return x + self.mlp(self.post_attention_layernorm(x)), own


class ExpertLayer(nn.Module):
    """A layer of the action expert."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        dim = spec.expert_dim
        self.input_layernorm, self.post_attention_layernorm = AdaptiveNorm(dim), AdaptiveNorm(dim)
        self.self_attn = Attention(spec, dim, True, False)
        self.mlp = MixtureOfExperts(spec) if spec.experts else GatedMlp(dim, spec.expert_ffn_dim)

    def forward(self, x: Tensor, condition: Tensor, table: Tensor, prefix: KeysValues, mask: Tensor) -> Tensor:
        """x [B, L, D], condition [B, D], mask bool [B, L, Lp + L]."""
        h = self.input_layernorm(x, condition)
        own = self.self_attn.keys_values(h, table)
        keys, values = (torch.cat(pair, 1) for pair in zip(prefix, own, strict=True))
        x = x + self.self_attn(h, table, keys, values, mask)
        return x + self.mlp(self.post_attention_layernorm(x, condition))
