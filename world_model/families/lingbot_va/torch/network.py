"""LingBot-VA's network in plain PyTorch, shared or as a Mixture of Transformers, loaded from files (extra: torch).

    network, spec, settings = load("export", device="cuda")      # sampling: sampler.py

The layer is Wan's (families/wan/torch_layers.py) under diffusers' names, which meet in ours.
Latents are channel-last [B, F, h, w, C].
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.families.lingbot_va.layout import LingBotVASpec, Modality
from world_model.families.lingbot_va.mixture import LingBotVAMoTSpec
from world_model.families.lingbot_va.weights.names import STREAMS
from world_model.families.lingbot_va.weights.released_format import FOLDER, STEM, check_config, read_settings
from world_model.families.wan import diffusers_names
from world_model.families.wan import names as wan_names
from world_model.families.wan.spec import PATCH
from world_model.families.wan.torch_layers import Layer, Tokens, norm, time_sinusoid_float32
from world_model.weights.safetensors_io import Weights
from world_model.weights.tensor_files import SPELLING

_WAN = {native: published for published, native, _ in wan_names.LAYER_MODULES}
BLOCK_NAMES = {of + _WAN[native]: of + published  # ours -> released
               for of in ("", *(f"{stream}." for stream in STREAMS))
               for published, native, _ in diffusers_names.LAYER_MODULES}

KeysValues = list[tuple[Tensor, Tensor]]  # per layer, [B, L, n, d] each; keys are rotated


class TwoLinears(nn.Module):
    """A linear, an activation, a linear."""

    def __init__(self, width_in: int, dim: int, activation):
        super().__init__()
        self.linear_1, self.linear_2, self.activation = nn.Linear(width_in, dim), nn.Linear(dim, dim), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class ConditionEmbedder(nn.Module):
    """Timesteps and text. Of a shared network the actions' text embedder is stored and never used, as released."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int):
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder, self.time_proj = TwoLinears(freq_dim, dim, F.silu), nn.Linear(dim, 6 * dim)
        self.text_embedder = TwoLinears(text_dim, dim, lambda x: F.gelu(x, approximate="tanh"))

    def time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """[B, R] -> [B, R, D] as heads read it, [B, R, 6, D] as layers do."""
        time = self.time_embedder(time_sinusoid_float32(timesteps, self.freq_dim).to(self.time_proj.weight.dtype))
        return time, self.time_proj(F.silu(time)).unflatten(-1, (6, -1))


class Network(nn.Module):
    """The parameters, and one pass over a chunk's video or its actions. Both go through the same layers."""

    def __init__(self, spec: LingBotVASpec, action_dim: int | None = None):
        super().__init__()
        dim, narrow, patch = spec.dim, action_dim or spec.dim, PATCH * PATCH * spec.latent_channels
        self.spec, self.grid = spec, spec.grid
        self.patch_embedding_mlp, self.action_embedder = nn.Linear(patch, dim), nn.Linear(spec.action_dim, narrow)
        self.condition_embedder, self.condition_embedder_action = (
            ConditionEmbedder(width, spec.freq_dim, spec.text_dim) for width in (dim, narrow))
        self.blocks = nn.ModuleList(self.make_layer() for _ in range(spec.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, dim))
        self.proj_out, self.action_proj_out = nn.Linear(dim, patch), nn.Linear(narrow, spec.action_dim)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in; velocities have that of the noise."""
        return self.proj_out.weight.dtype

    def make_layer(self) -> nn.Module:
        """One layer."""
        spec = self.spec
        return Layer(spec.dim, spec.ffn_dim, spec.num_heads, False)

    def of_stream(self, layer: nn.Module, modality: Modality) -> Layer:
        """The part of a layer that the modality goes through."""
        return layer

    def head_table(self, modality: Modality) -> Tensor:
        """[1, 2, D], of the norm in front of the head."""
        return self.scale_shift_table

    def context(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Lt, text_dim] -> what the video's layers take, what the actions' do."""
        text = self.condition_embedder.text_embedder(text.to(self.dtype))
        return text, text

    def run(self, modality: Modality, *of_pass) -> tuple[Tensor, KeysValues]:
        """One pass over a chunk's video or its actions: (velocity, this pass's keys and values)."""
        return (self.video if modality is Modality.VIDEO else self.actions)(*of_pass)

    def video(self, latents: Tensor, timesteps: Tensor, rotary: Tensor, context: tuple, past: KeysValues | None
              ) -> tuple[Tensor, KeysValues]:
        """(velocity [B, K, h, w, C], this pass's keys and values); timesteps [B, K], rotary
        float32 [2, L, d/2]."""
        rows, columns = self.grid
        cropped = latents[:, :, :PATCH * rows, :PATCH * columns].to(self.dtype)
        x = rearrange(cropped, "b f (h p) (w q) c -> b (f h w) (c p q)", p=PATCH, q=PATCH)
        x, own = self._run(Modality.VIDEO, self.patch_embedding_mlp(x), timesteps, rotary, context, past)
        out = self.proj_out(x).to(latents.dtype)
        return rearrange(out, "b (f h w) (p q c) -> b f (h p) (w q) c", p=PATCH, q=PATCH, h=rows, w=columns), own

    def actions(self, actions: Tensor, timesteps: Tensor, rotary: Tensor, context: tuple, past: KeysValues | None
                ) -> tuple[Tensor, KeysValues]:
        """(velocity [B, K n, A], this pass's keys and values) of actions [B, K n, A]; timesteps [B, K]."""
        x = self.action_embedder(actions.to(self.dtype))
        x, own = self._run(Modality.ACTION, x, timesteps, rotary, context, past)
        return self.action_proj_out(x).to(actions.dtype), own

    def _run(self, modality: Modality, x: Tensor, timesteps: Tensor, rotary: Tensor, context: tuple,
             past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """All layers over [past, x], and the modulated norm in front of the heads."""
        conditions = self.condition_embedder if modality is Modality.VIDEO else self.condition_embedder_action
        time, modulation = conditions.time(timesteps)
        text = context[list(Modality).index(modality)], None
        rows = torch.arange(timesteps.shape[1], device=x.device).repeat_interleave(x.shape[1] // timesteps.shape[1])
        tokens, own = Tokens(x, rotary, timesteps, rows), []
        for i, layer in enumerate(self.blocks):
            x, written = self.of_stream(layer, modality)(x, modulation, tokens, text, past=past[i] if past else None)
            own.append(written)
        shift, scale = self.head_table(modality)[0]
        return norm(x) * (1 + scale + time[:, rows]) + shift + time[:, rows], own


class MoTNetwork(Network):
    """Layers of its own for each modality; they meet in the keys and values that both write and read."""

    spec: LingBotVAMoTSpec

    def __init__(self, spec: LingBotVAMoTSpec):
        super().__init__(spec, spec.action_stream_dim)
        self.action_scale_shift_table = nn.Parameter(torch.empty(1, 2, spec.action_stream_dim))

    def make_layer(self) -> nn.Module:
        """See Network; a narrow layer has the heads of the wide one."""
        spec = self.spec
        return nn.ModuleDict({"video": super().make_layer(), "action": Layer(
            spec.action_stream_dim, spec.action_ffn_dim, spec.num_heads, False, spec.head_dim)})

    def of_stream(self, layer: nn.Module, modality: Modality) -> Layer:
        return layer[modality]

    def head_table(self, modality: Modality) -> Tensor:
        return self.scale_shift_table if modality is Modality.VIDEO else self.action_scale_shift_table

    def context(self, text: Tensor) -> tuple[Tensor, Tensor]:
        text = text.to(self.dtype)
        return self.condition_embedder.text_embedder(text), self.condition_embedder_action.text_embedder(text)


NETWORKS: dict[type, Callable[..., Network]] = {LingBotVASpec: Network, LingBotVAMoTSpec: MoTNetwork}


def make_network(spec: LingBotVASpec) -> Network:
    """A network of shapes alone."""
    with torch.device("meta"):
        return NETWORKS[type(spec)](spec)


def released_name(name: str) -> str:
    """A parameter of `Network` as the release calls it."""
    if not name.startswith("blocks."):
        return name
    _, i, rest = name.split(".", 2)
    module = next(m for m in BLOCK_NAMES if rest == m or rest.startswith(f"{m}."))
    return f"blocks.{i}.{BLOCK_NAMES[module]}{rest.removeprefix(module)}"


def load_network(tensors: Mapping[str, np.ndarray], spec: LingBotVASpec) -> Network:
    """A network with `tensors` under the released names, strictly: RuntimeError lists what does not fit."""
    network = make_network(spec)
    native = {released_name(name): name for name in network.state_dict()}
    state = {native.get(name, name): torch.from_numpy(np.array(x, np.float32)) for name, x in tensors.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def load(directory: str | Path, device: str = "cpu", dtype: str = "float32") -> tuple[Network, LingBotVASpec, dict]:
    """Loads an export of `launch.export`, to compute in `dtype`, and the settings of LingBotVATorchSampler that it
    recommends.

    Raises WeightsError naming file and key where anything is missing, left over or of another shape or dtype.
    """
    spec, settings, stored = read_settings(directory)
    check_config(Path(directory) / FOLDER, spec)
    weights = Weights(Path(directory) / FOLDER, STEM)
    expected = {released_name(name): x for name, x in make_network(spec).state_dict().items()}
    weights.check({name: (tuple(x.shape), SPELLING[stored]) for name, x in expected.items()})
    return load_network(weights, spec).to(device, getattr(torch, dtype)), spec, settings
