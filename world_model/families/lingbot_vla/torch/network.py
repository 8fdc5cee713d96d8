"""LingBot-VLA's network in plain PyTorch, both versions, loaded from files (extra: torch).

    network, spec, settings = load("export", device="cuda", dtype="bfloat16")      # sampling: sampler.py

Modules are called as they are published, with the vision tower and the language model in one place for both versions.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model import functional
from world_model.families.lingbot_vla.model import LingBotVLA, random_seeds, time_frequencies
from world_model.families.lingbot_vla.queries import KINDS, WHEN
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.torch.layers import ExpertLayer, KeysValues, LanguageLayer, RMSNorm
from world_model.families.lingbot_vla.torch.prefix import (
    prefix_mask,
    prefix_tokens,
    rotary_table,
    suffix_mask,
    suffix_positions,
)
from world_model.families.lingbot_vla.torch.vision import VisionTower
from world_model.families.lingbot_vla.weights.names import EXPERT, PREFIXES, PUBLISHED_HEADS, TABLES
from world_model.families.lingbot_vla.weights.released_format import PREFIX, read_settings, weights_folder
from world_model.weights import names
from world_model.weights.safetensors_io import Weights
from world_model.weights.tensor_files import SPELLING

HEAD = re.compile(r"\w+_align_head\.")  # names of teachers' heads
ROUTER = re.compile(r"mlp\.(gate\.weight|e_score_correction_bias)$")


class EncodedPrefix(NamedTuple):
    """Keys and values of the prefix in every layer, with what the action expert needs to attend to them."""

    layers: list[KeysValues]
    table: Tensor  # float32 [2, B, 1 + N, d/2], of the suffix
    mask: Tensor  # bool [B, 1 + N, Lp + 1 + N]


class Stack(nn.Module):
    """Layers and a norm behind them."""

    def __init__(self, layers: list[nn.Module], dim: int, words: int = 0):
        super().__init__()
        if words:
            self.embed_tokens = nn.Embedding(words, dim)
        self.layers, self.norm = nn.ModuleList(layers), RMSNorm(dim)


class Network(nn.Module):
    """`encode_prefix` encodes pictures and text once, `velocity` is asked at each noise level."""

    def __init__(self, spec: LingBotVLASpec):
        super().__init__()
        self.spec, narrow = spec, spec.expert_dim
        self.visual = VisionTower(spec)
        self.language = Stack([LanguageLayer(spec) for _ in range(spec.num_layers)], spec.dim, spec.vocab_size)
        self.expert = Stack([ExpertLayer(spec) for _ in range(spec.num_layers)], narrow)
        self.state_proj, self.action_in_proj = nn.Linear(spec.state_dim, narrow), nn.Linear(spec.action_dim, narrow)
        self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * narrow, narrow), nn.Linear(narrow, narrow)
        self.action_out_proj = nn.Linear(narrow, spec.action_dim)
        if spec.depth_queries and spec.depth_queries_learned:
            self.depth_align_embs = nn.Parameter(torch.empty(spec.query_seeds, spec.dim))
        if spec.query_tokens:
            for when in WHEN:
                for kind in KINDS:
                    self.register_parameter(seeds(when, kind), nn.Parameter(torch.empty(spec.query_seeds, spec.dim)))
                setattr(self, f"{when}_shared_task_proj", nn.Linear(len(KINDS) * spec.dim, spec.dim))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in; velocities have that of the noise."""
        return self.state_proj.weight.dtype

    def encode_prefix(self, patches: Tensor, view_mask: Tensor, text_ids: Tensor, text_length: Tensor) -> EncodedPrefix:
        """patches [B, V, n, values], view_mask bool [B, V], text_ids int [B, text_length], text_length int [B]."""
        spec, actions = self.spec, self.spec.layout.actions_per_block
        valid, positions = prefix_tokens(spec, view_mask, text_length)
        x, taps = self.embed_prefix(patches, view_mask, text_ids)
        table, mask, layers = rotary_table(spec, positions), prefix_mask(spec, valid), []
        for i, layer in enumerate(self.language.layers[:-1]):
            x, own = layer(x, table, mask)
            x = x + taps[i] if i < len(taps) else x
            layers.append(own)
        layers.append(self.language.layers[-1].keys_values(x, table))
        suffix = suffix_positions(valid, positions, 1 + actions)
        return EncodedPrefix(layers, rotary_table(spec, suffix), suffix_mask(spec, valid, actions))

    def embed_prefix(self, patches: Tensor, view_mask: Tensor, text_ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(prefix [B, Lp, D], what each tap of the vision tower adds to it)."""
        spec, embed, (batch, views) = self.spec, self.language.embed_tokens.weight, view_mask.shape
        x, taps = self.visual(patches.flatten(0, 1))
        x, *taps = (a.unflatten(0, (batch, views)) for a in (x, *taps))
        taps = [torch.where(view_mask[..., None, None], tap, 0) for tap in taps]
        if spec.view_markers:
            first, last = (embed[i].expand(batch, views, 1, -1) for i in spec.view_markers)
            x, taps = torch.cat([first, x, last], 2), [F.pad(tap, (0, 0, 1, 1)) for tap in taps]
        x = torch.cat([x.flatten(1, 2), self.depth_queries(batch), embed[text_ids]], 1)
        if spec.query_tokens:
            x = torch.cat([x, self.queries().expand(batch, -1, -1)], 1)
        taps = [tap.flatten(1, 2) for tap in taps]
        return x, [F.pad(tap, (0, 0, 0, x.shape[1] - tap.shape[1])) for tap in taps]

    def depth_queries(self, batch: int) -> Tensor:
        """[B, V x depth queries, D]: the same for each view."""
        spec, weight = self.spec, self.state_proj.weight
        if not spec.depth_queries:
            return weight.new_zeros(batch, 0, spec.dim)
        seeds = (self.depth_align_embs if spec.depth_queries_learned else
                 torch.from_numpy(random_seeds(spec)).to(weight.device, weight.dtype))
        return seeds.unflatten(0, (spec.depth_queries, -1)).mean(1).repeat(batch, spec.views, 1)

    def queries(self) -> Tensor:
        """[2 Q, D]: query tokens of the present, then of the future."""
        groups = self.spec.query_tokens, -1
        return torch.cat([getattr(self, f"{when}_shared_task_proj")(torch.cat(
            [getattr(self, seeds(when, kind)).unflatten(0, groups).mean(1) for kind in KINDS], -1)) for when in WHEN])

    def velocity(self, prefix: EncodedPrefix, state: Tensor, actions: Tensor, condition: Tensor) -> Tensor:
        """Noise minus data of noisy actions [B, N, action_dim] with state [B, state_dim]; condition [B, D], of
        `time_sinusoid`."""
        condition = condition.to(self.dtype)
        x = self.action_in_proj(actions.to(self.dtype))
        x = self.action_time_mlp_in(torch.cat([x, condition[:, None].expand_as(x)], -1))
        x = torch.cat([self.state_proj(state.to(self.dtype))[:, None], self.action_time_mlp_out(F.silu(x))], 1)
        for layer, keys_values in zip(self.expert.layers, prefix.layers, strict=True):
            x = layer(x, condition, prefix.table, keys_values, prefix.mask)
        return self.action_out_proj(self.expert.norm(x[:, 1:])).to(actions.dtype)


def seeds(when: str, kind: str) -> str:
    """The published name of a kind of query's seeds."""
    return f"{PUBLISHED_HEADS[f'{when}_{kind}']}_embs"


def time_sinusoid(times: Tensor, width: int) -> Tensor:
    """float32 [..., width]: sines, then cosines, of times float32 [...] in [0, 1]."""
    angles = torch.from_numpy(time_frequencies(width // 2)).to(times.device) * times[..., None]
    return torch.cat([angles.sin(), angles.cos()], -1)


def make_network(spec: LingBotVLASpec) -> Network:
    """A network of shapes alone."""
    with torch.device("meta"):
        return Network(spec)


def published_name(spec: LingBotVLASpec, name: str) -> str:
    """A parameter of `Network` as it is published."""
    visual, language = PREFIXES[spec.vision]
    for part, prefix in (("visual.", visual), ("language.", language), ("expert.", EXPERT)):
        if name.startswith(part):
            return prefix + name.removeprefix(part)
    return name


def load_network(tensors: Iterable[tuple[str, np.ndarray]], spec: LingBotVLASpec, device: str = "cpu",
                 dtype: str = "float32") -> Network:
    """A network with `tensors` under their published names, strictly: RuntimeError lists what does not fit. They go to
    the device one by one; heads of teachers, which training alone reads, stay behind, and routers are float32 in any
    dtype."""
    network = make_network(spec)
    ours = {published_name(spec, name): name for name in network.state_dict()}
    state = {ours.get(name, name): torch.from_numpy(np.array(x, np.float32)).to(
        device, torch.float32 if ROUTER.search(name) else getattr(torch, dtype))
        for name, x in tensors if not HEAD.match(name)}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def load(directory: str | Path, device: str = "cpu", dtype: str = "float32") -> tuple[Network, LingBotVLASpec, dict]:
    """Loads an export of `launch.export`, to compute in `dtype`, and the settings of LingBotVLATorchSampler that it
    recommends.

    Raises WeightsError naming file and key where anything is missing, left over or of another shape or dtype.
    """
    spec, settings, stored = read_settings(directory)
    weights = Weights(weights_folder(directory))
    shapes = functional.parameters(functional.abstract(LingBotVLA, dataclasses.replace(spec, lora_rank=0)))
    weights.check({PREFIX + name: (x.shape, SPELLING[stored])
                   for name, x in names.published_shapes(shapes, spec.head_dim, TABLES[spec.vision]).items()})
    tensors = ((key.removeprefix(PREFIX), weights[key]) for key in weights)
    return load_network(tensors, spec, device, dtype), spec, settings
