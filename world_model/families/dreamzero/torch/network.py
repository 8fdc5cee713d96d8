"""DreamZero's network in plain PyTorch, under the reference's parameter names (extra: torch).

For running exported weights on GPUs behind a robot, and as a second opinion on the JAX model. Written for
reading: dense masks, no fusion. What it must compute is held by tests/goldens. Shape letters as in
world_model/batch.py; latents are channel-last.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class RMSNorm(nn.Module):
    """Over the full width, before heads are split; the mean square is float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * self.weight


def norm(x: Tensor) -> Tensor:
    """Layer norm without weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)


def _gelu_mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU("tanh"), nn.Linear(hidden, width_out))


def time_sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """float64 [..., width]: cosines, then sines."""
    half = width // 2
    frequency = 1e4 ** (-torch.arange(half, device=timesteps.device, dtype=torch.float64) / half)
    angle = timesteps.double()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """x [B, L, n, d], angles float64 [L, d/2]: turns the pairs (2i, 2i + 1) by angle i, in float64."""
    a, b = x.double().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, Lq, n, d] x [B, Lk, n, d] -> [B, Lq, n d]; mask bool [Lq, Lk], True where seen."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


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

    def project(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values."""
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(x)))
        return rotate(q, angles), rotate(k, angles), self.heads(self.v(x))


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
    angles: Tensor  # float64 [L, d/2]
    timesteps: Tensor  # float32 [B, M], 0..1000
    rows: Tensor  # int64 [L]: the column of `timesteps` that each token has


def join(parts: list[Tokens]) -> Tokens:
    """One sequence after another."""
    offsets = [sum(p.timesteps.shape[1] for p in parts[:i]) for i in range(len(parts))]
    return Tokens(torch.cat([p.x for p in parts], 1), torch.cat([p.angles for p in parts]),
                  torch.cat([p.timesteps for p in parts], 1),
                  torch.cat([p.rows + offset for p, offset in zip(parts, offsets, strict=True)]))


class Layer(nn.Module):
    """Modulated self-attention, cross-attention without a gate, modulated MLP. head_dim: as in transformer.Layer."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, has_image: bool, head_dim: int | None = None):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        self.self_attn = SelfAttention(dim, num_heads, head_dim and num_heads * head_dim)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim, dim // head_dim if head_dim else num_heads, has_image)
        self.ffn = _gelu_mlp(dim, ffn_dim, dim)

    def forward(self, x: Tensor, time: Tensor, tokens: Tokens, context: tuple, mask: Tensor | None,
                past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """time [B, M, 6, D] -> (x, this sequence's keys and values); `past` stands before the own ones."""
        modulation = (self.modulation + time).unbind(2)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = (m[:, tokens.rows] for m in modulation)
        q, k, v = own = self.self_attn.project(norm(x) * (1 + scale) + shift, tokens.angles)
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        x = x + gate * self.self_attn.o(attend(q, k, v, mask))
        x = x + self.cross_attn(self.norm3(x), *context)
        x = x + gate_ffn * self.ffn(norm(x) * (1 + scale_ffn) + shift_ffn)
        return x, own[1:]


class CategoryLinear(nn.Module):
    """A linear with a leading axis of embodiment categories, of which the released models use one."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(1, width_in, width_out))
        self.b = nn.Parameter(torch.empty(1, width_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W[0] + self.b[0]


class CategoryMLP(nn.Module):
    """State encoder and action decoder."""

    def __init__(self, width_in: int, hidden: int, width_out: int):
        super().__init__()
        self.layer1, self.layer2 = CategoryLinear(width_in, hidden), CategoryLinear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(torch.relu(self.layer1(x)))


class ActionEncoder(nn.Module):
    """Action and its own timestep -> token."""

    def __init__(self, action_dim: int, dim: int):
        super().__init__()
        self.W1, self.W2, self.W3 = (CategoryLinear(i, dim) for i in (action_dim, 2 * dim, dim))

    def forward(self, action: Tensor, timestep: Tensor) -> Tensor:
        half = self.W1.W.shape[-1] // 2
        # float32 as released: at t = 1000 another order of operations is another angle by 1e-4.
        rate = timestep.new_tensor(1e4).log() / half
        frequency = torch.exp(-torch.arange(half, device=action.device) * rate)
        angle = timestep[..., None] * frequency
        # Sine first here, cosine first in the timestep embedding below: as released.
        time = torch.cat([angle.sin(), angle.cos()], -1).to(action.dtype)
        return self.W3(F.silu(self.W2(torch.cat([self.W1(action), time], -1))))


class Head(nn.Module):
    """Modulated projection of video tokens to a patch of 2 x 2 latent pixels."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))
        self.head = nn.Linear(dim, 4 * channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.modulation[0]
        return self.head(norm(x) * (1 + scale + time) + shift + time)


class DreamZero(nn.Module):
    """The parameters and the per-token computation; what stands in a sequence is torch_runtime's business."""

    def __init__(self, *, dim: int, ffn_dim: int, num_heads: int, num_layers: int, freq_dim: int, in_dim: int,
                 out_dim: int, text_dim: int, image_dim: int, action_dim: int, state_dim: int,
                 action_hidden_dim: int):
        super().__init__()
        self.freq_dim, self.out_dim, self.head_dim = freq_dim, out_dim, dim // num_heads
        self.patch_embedding = nn.Conv3d(in_dim, dim, (1, 2, 2), stride=(1, 2, 2))
        self.text_embedding = _gelu_mlp(text_dim, dim, dim)
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        if image_dim:
            self.img_emb = nn.ModuleDict({"proj": nn.Sequential(
                nn.LayerNorm(image_dim), nn.Linear(image_dim, image_dim), nn.GELU(),
                nn.Linear(image_dim, dim), nn.LayerNorm(dim))})
        self.state_encoder = CategoryMLP(state_dim, action_hidden_dim, dim)
        self.action_encoder = ActionEncoder(action_dim, dim)
        self.action_decoder = CategoryMLP(dim, action_hidden_dim, action_dim)
        blocks = (Layer(dim, ffn_dim, num_heads, bool(image_dim)) for _ in range(num_layers))
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(dim, out_dim)

    def context(self, text: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Text features [B, Lt, text_dim], zero past the prompt, and image features -> width D."""
        return self.text_embedding(text), None if image is None else self.img_emb["proj"](image)

    def time(self, timesteps: Tensor) -> Tensor:
        """[B, M] -> [B, M, D]."""
        return self.time_embedding(time_sinusoid(timesteps, self.freq_dim).to(self.time_embedding[0].weight.dtype))

    def patches(self, latents: Tensor) -> Tensor:
        """[B, F, h, w, C] -> [B, F h/2 w/2, D], frame-major, then row, then column."""
        return self.patch_embedding(latents.movedim(-1, 1)).flatten(2).transpose(1, 2)

    def video(self, hidden: Tensor, time: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Video tokens and their time embeddings -> velocities [B, F, h, w, C]; shape = F, h/2, w/2."""
        x = self.head(hidden, time).unflatten(-1, (2, 2, self.out_dim)).unflatten(1, shape)
        return x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)

    def forward(self, tokens: Tokens, context: tuple, mask: Tensor | None = None, past: list | None = None
                ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], Tensor]:
        """-> (hidden states after each block, each block's keys and values, time embedding per token)."""
        time = self.time(tokens.timesteps)
        modulation = self.time_projection(time).unflatten(-1, (6, -1))
        x, hidden, caches = tokens.x, [], []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, modulation, tokens, context, mask, past[i] if past else None)
            hidden.append(x)
            caches.append(cache)
        return hidden, caches, time[:, tokens.rows]
