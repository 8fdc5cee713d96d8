"""The vision towers in plain PyTorch; families/lingbot_vla/vision.py says what they do (extra: torch)."""

import functools

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.families.lingbot_vla import vision
from world_model.families.lingbot_vla.spec import MERGE, TEMPORAL_PATCH, LingBotVLASpec
from world_model.families.lingbot_vla.torch.layers import GatedMlp, RMSNorm, attend, rotate
from world_model.layers import rotary
from world_model.layers.norms import EPS


class LayerNorm(nn.Module):
    """Layer norm in float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), EPS).to(x.dtype)


class GeluMlp(nn.Module):
    """Two linears around a GELU, by their published names."""

    def __init__(self, dim: int, ffn_dim: int, width_out: int, approximate: str):
        super().__init__()
        self.linear_fc1, self.linear_fc2 = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, width_out)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate=self.approximate))


def join(x: Tensor) -> Tensor:
    """[B, n, D] -> [B, n / 4, 4 D]: the four patches of a token next to each other."""
    return x.unflatten(1, (-1, MERGE**2)).flatten(2)


class Merger2(nn.Module):
    """Qwen2.5's: a norm of patches, then two linears."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        wide = MERGE**2 * spec.vision_dim
        self.ln_q, self.mlp = RMSNorm(spec.vision_dim), nn.Sequential(
            nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, spec.dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(join(self.ln_q(x)))


class Merger3(GeluMlp):
    """Qwen3's; joined: the norm comes after joining patches."""

    def __init__(self, spec: LingBotVLASpec, joined: bool = False):
        wide = MERGE**2 * spec.vision_dim
        super().__init__(wide, wide, spec.dim, "none")
        self.joined, self.norm = joined, LayerNorm(wide if joined else spec.vision_dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(join(x)) if self.joined else join(self.norm(x)))


class VisionAttention(nn.Module):
    """Self-attention of a view's patches."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        self.heads, dim = spec.vision_heads, spec.vision_dim
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(attend(rotate(q, table), rotate(k, table), v, mask))


class VisionLayer(nn.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        dim, ffn = spec.vision_dim, spec.vision_ffn_dim
        older = spec.vision == "qwen2_5"
        self.norm1, self.norm2 = (RMSNorm(dim) if older else LayerNorm(dim) for _ in range(2))
        self.attn = VisionAttention(spec)
        self.mlp = GatedMlp(dim, ffn, bias=True) if older else GeluMlp(dim, ffn, dim, "tanh")

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), table, mask)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """A linear of a patch's values, stored as a convolution."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        size = TEMPORAL_PATCH, spec.vision_patch, spec.vision_patch
        self.proj = nn.Conv3d(3, spec.vision_dim, size, bias=spec.vision == "qwen3")

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class VisionTower(nn.Module):
    """Turns patches of views into tokens of the language model."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        self.spec, self.patch_embed = spec, PatchEmbedding(spec)
        self.blocks = nn.ModuleList(VisionLayer(spec) for _ in range(spec.vision_layers))
        if spec.vision_positions:
            self.pos_embed = nn.Embedding(spec.vision_positions**2, spec.vision_dim)
        self.merger = Merger2(spec) if spec.vision == "qwen2_5" else Merger3(spec)
        if spec.vision_taps:
            self.deepstack_merger_list = nn.ModuleList(Merger3(spec, joined=True) for _ in spec.vision_taps)

    def forward(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """patches [B, n, values] in the processor's order -> tokens [B, n / 4, D], those of each tapped layer."""
        spec, x, taps = self.spec, self.patch_embed(patches), []
        table, window, positions = self.constants
        if spec.vision_positions:
            x = x + (positions @ self.pos_embed.weight.float()).to(x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, table, None if i in spec.vision_full_layers else window)
            if i in spec.vision_taps:
                taps.append(self.deepstack_merger_list[spec.vision_taps.index(i)](x))
        return self.merger(x), taps

    @functools.cached_property
    def constants(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(rotary table float32 [2, 1, n, d/2], windows bool [1, n, n] or None, weights [n, positions^2] of learned
        positions or None), on the device where they are first asked for."""
        spec, device = self.spec, self.patch_embed.proj.weight.device
        angles = vision.patch_angles(spec.grid, spec.vision_dim // spec.vision_heads)
        table = torch.from_numpy(rotary.table(angles)).to(device)[:, None]
        window = torch.from_numpy(vision.windows(spec, spec.grid)).to(device)[None] if spec.vision_window else None
        if not spec.vision_positions:
            return table, window, None
        rows, columns = (torch.from_numpy(vision.interpolation(spec.vision_positions, size)) for size in spec.grid)
        weights = vision.in_order(torch.einsum("ri,cj->rcij", rows, columns).flatten(2).numpy())
        return table, window, torch.from_numpy(weights).to(device)


def make_patches(spec: LingBotVLASpec, views: Tensor) -> Tensor:
    """uint8 [B, V, H, W, 3] -> float32 [B, V, n, values], as Qwen's processor makes them of single pictures."""
    mean, std = (views.new_tensor(x, dtype=torch.float32) for x in vision.PIXELS[spec.vision])
    p = spec.vision_patch
    x = rearrange((views.float() / 255 - mean) / std, "b v (h i p) (w j q) c -> b v (h w i j) c (p q)",
                  i=MERGE, j=MERGE, p=p, q=p)
    return torch.stack([x, x], -2).flatten(3)  # the picture stands in both frames of a patch
