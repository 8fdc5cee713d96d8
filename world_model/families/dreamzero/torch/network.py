"""DreamZero's network in plain PyTorch, under the reference's parameter names (extra: torch).

What it must compute is held by tests/goldens; the layers are Wan's (families/wan/torch_layers.py).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.families.wan.torch_layers import Layer, Tokens, attend, gelu_mlp, norm, time_sinusoid


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
        self.text_embedding = gelu_mlp(text_dim, dim, dim)
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

    def forward(self, tokens: Tokens, context: tuple, attention: Callable = attend, past: list | None = None
                ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], Tensor]:
        """-> (hidden states after each layer, each layer's keys and values, time embedding per token)."""
        time = self.time(tokens.timesteps)
        modulation = self.time_projection(time).unflatten(-1, (6, -1))
        x, hidden, caches = tokens.x, [], []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, modulation, tokens, context, attention, past[i] if past else None)
            hidden.append(x)
            caches.append(cache)
        return hidden, caches, time[:, tokens.rows]
