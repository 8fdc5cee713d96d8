"""LingBot-VA's network in plain PyTorch, loaded from a released directory (extra: torch).

    network, spec, settings = load("export", device="cuda")      # rollouts: torch_lingbot_va_rollout.py

The block is DreamZero's (torch_model.py): both families are Wan's transformer under other names, which meet in ours.
Latents are channel-last [B, F, h, w, C].
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.families.lingbot_va_layout import LingBotVASpec
from world_model.families.spec import PATCH
from world_model.interop import names
from world_model.interop.lingbot_va_format import FOLDER, STEM, check_config, read_settings
from world_model.interop.lingbot_va_names import LINGBOT_VA
from world_model.interop.safetensors_io import Weights
from world_model.interop.torch_model import Block, Tokens, norm, time_sinusoid

_OF_BLOCK = {ours: theirs for theirs, ours, _ in names.DREAMZERO.block_modules}
BLOCK_NAMES = {_OF_BLOCK[ours]: theirs for theirs, ours, _ in LINGBOT_VA.block_modules}  # torch_model's -> released

KeysValues = list[tuple[Tensor, Tensor]]  # per block, [B, L, n, d] each; keys are rotated


class TwoLinears(nn.Module):
    """A linear, an activation, a linear."""

    def __init__(self, width_in: int, dim: int, activation):
        super().__init__()
        self.linear_1, self.linear_2, self.activation = nn.Linear(width_in, dim), nn.Linear(dim, dim), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class Conditions(nn.Module):
    """Timesteps and text. The actions' own text embedder is stored and never used, as released."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int):
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder, self.time_proj = TwoLinears(freq_dim, dim, F.silu), nn.Linear(dim, 6 * dim)
        self.text_embedder = TwoLinears(text_dim, dim, lambda x: F.gelu(x, approximate="tanh"))

    def time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """[B, R] -> [B, R, D] as heads read it, [B, R, 6, D] as blocks do."""
        time = self.time_embedder(time_sinusoid(timesteps, self.freq_dim).to(self.time_proj.weight.dtype))
        return time, self.time_proj(F.silu(time)).unflatten(-1, (6, -1))


class Network(nn.Module):
    """The parameters, and one pass over a chunk's video or its actions."""

    def __init__(self, spec: LingBotVASpec):
        super().__init__()
        dim, patch = spec.dim, PATCH * PATCH * spec.latent_channels
        self.grid = spec.grid
        self.patch_embedding_mlp, self.action_embedder = nn.Linear(patch, dim), nn.Linear(spec.action_dim, dim)
        self.condition_embedder, self.condition_embedder_action = (
            Conditions(dim, spec.freq_dim, spec.text_dim) for _ in range(2))
        self.blocks = nn.ModuleList(Block(dim, spec.ffn_dim, spec.num_heads, False) for _ in range(spec.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, dim))
        self.proj_out, self.action_proj_out = nn.Linear(dim, patch), nn.Linear(dim, spec.action_dim)

    def context(self, text: Tensor) -> tuple[Tensor, None]:
        """[B, Lt, text_dim] -> what blocks take."""
        return self.condition_embedder.text_embedder(text), None

    def video(self, latents: Tensor, timesteps: Tensor, angles: Tensor, context: tuple, past: KeysValues | None
              ) -> tuple[Tensor, KeysValues]:
        """(velocity [B, K, h, w, C], this pass's keys and values); timesteps [B, K], angles [L, d/2]."""
        rows, columns = self.grid
        cropped = latents[:, :, :PATCH * rows, :PATCH * columns]
        x = rearrange(cropped, "b f (h p) (w q) c -> b (f h w) (c p q)", p=PATCH, q=PATCH)
        x, own = self._run(self.condition_embedder, self.patch_embedding_mlp(x), timesteps, angles, context, past)
        return rearrange(self.proj_out(x), "b (f h w) (p q c) -> b f (h p) (w q) c", p=PATCH, q=PATCH, h=rows,
                         w=columns), own

    def actions(self, actions: Tensor, timesteps: Tensor, angles: Tensor, context: tuple, past: KeysValues | None
                ) -> tuple[Tensor, KeysValues]:
        """The same of actions [B, K n, A]; timesteps [B, K]."""
        x, own = self._run(self.condition_embedder_action, self.action_embedder(actions), timesteps, angles, context,
                           past)
        return self.action_proj_out(x), own

    def _run(self, conditions: Conditions, x: Tensor, timesteps: Tensor, angles: Tensor, context: tuple,
             past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """All blocks over [past, x], and the modulated norm in front of the heads."""
        time, modulation = conditions.time(timesteps)
        rows = torch.arange(timesteps.shape[1], device=x.device).repeat_interleave(x.shape[1] // timesteps.shape[1])
        tokens, own = Tokens(x, angles, timesteps, rows), []
        for i, block in enumerate(self.blocks):
            x, written = block(x, modulation, tokens, context, None, past[i] if past else None)
            own.append(written)
        shift, scale = self.scale_shift_table[0]
        return norm(x) * (1 + scale + time[:, rows]) + shift + time[:, rows], own


def released_name(name: str) -> str:
    """A parameter of `Network` as the release calls it."""
    if not name.startswith("blocks."):
        return name
    _, i, rest = name.split(".", 2)
    module = next(m for m in BLOCK_NAMES if rest == m or rest.startswith(f"{m}."))
    return f"blocks.{i}.{BLOCK_NAMES[module]}{rest.removeprefix(module)}"


def load_network(tensors: Mapping[str, np.ndarray], spec: LingBotVASpec) -> Network:
    """A network with `tensors` under the released names, strictly: RuntimeError lists what does not fit."""
    with torch.device("meta"):
        network = Network(spec)
    ours = {released_name(name): name for name in network.state_dict()}
    state = {ours.get(name, name): torch.from_numpy(np.array(x, np.float32)) for name, x in tensors.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def load(directory: str | Path, device: str = "cpu") -> tuple[Network, LingBotVASpec, dict]:
    """An export of `launch.export`, and the settings of torch_lingbot_va_rollout.Rollout that it recommends.

    Raises WeightsError naming file and key where anything is missing, left over or of another shape or dtype.
    """
    spec, settings = read_settings(directory)
    check_config(Path(directory) / FOLDER / "config.json", spec)
    weights = Weights(Path(directory) / FOLDER, STEM)
    with torch.device("meta"):
        expected = {released_name(name): x for name, x in Network(spec).state_dict().items()}
    weights.check({name: (tuple(x.shape), "F32") for name, x in expected.items()})
    return load_network(weights, spec).to(device), spec, settings
