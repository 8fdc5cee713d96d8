"""What a file of LingBot-VLA's reference numbers asks: the vision tower alone (vit), the training pass with embeddings,
masks, positions, hidden states, routers, losses and gradients (train), the prefix's cache and Euler steps (inf).

A file of version 2 asks all but the first in two cases that share weights, without query tokens (nq) and with them (q).
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from world_model.diffusion import flow_matching
from world_model.families.base.golden import GoldenFile
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.parity import golden_losses as parity_losses
from world_model.families.lingbot_vla.parity.golden_sizes import spec_of
from world_model.families.lingbot_vla.parity.jax_adapter import Expert, Language, LingBotVLAAdapter
from world_model.families.lingbot_vla.prefix import suffix_mask
from world_model.families.lingbot_vla.sampler import times
from world_model.families.lingbot_vla.spec import HEADS, LingBotVLASpec

Found = Iterator[tuple[str, np.ndarray]]
PADDED = re.compile(r"(^|/)(prefix_embs|vlm_layer\d+(_[qkv])?|prefix_out|[kv]_layer\d+)$")
SORTED = re.compile(r"/router_(selected|weights)$")
SERVED = re.compile(r"((nq|q)/)?(train/v_t|inf/(v_at_train_point|[kv]_layer\d+|step\d_\w+|actions.*|times.*))$")
QUERIES = re.compile(r"model\.(\w+_align_|\w+_shared_task_proj)|model\.depth_align")


class LingBotVLAGolden(GoldenFile):
    """A file of either version's numbers. The one case of version 1 is called ""."""

    MARK = "policy"
    INPUTS = re.compile(r"w/|in/|cfg_json$|((nq|q)/)?grad_names$|train/att_mask$")
    RELATIVE = re.compile(r".*grad_norm_(l1|mse)$")

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.valid = {case: arrays[f"{case}train/pad_mask"] for case in self.cases}
        for key, x in self.expected.items():
            if PADDED.search(key):  # rows of padding are the attention kernel's own
                x = real_rows(x, self.valid[re.sub(r"(train|inf)/.*", "", key)])
            if "grad_norm" in key:
                x = np.nan_to_num(x)  # no gradient counts as one of size 0
            self.expected[key] = np.sort(x, axis=-1) if SORTED.search(key) else x

    @property
    def cases(self) -> tuple[str, ...]:
        """Prefixes of what is asked of each model."""
        return ("nq/", "q/") if "case" in self.config else ("",)

    def spec(self, case: str) -> LingBotVLASpec:
        """The model of a case."""
        seeds = self.weights.get("model.depth_align_embs", ())
        return spec_of(self.config, len(seeds), case == "q/")

    def adapter(self, runtime: str, weights: Mapping[str, np.ndarray] | None = None):
        """{case: the model}. PyTorch serves and does not train: from then on only SERVED is compared."""
        of: type[Any] = LingBotVLAAdapter
        if runtime == "torch":
            from world_model.families.lingbot_vla.torch.adapter import TorchLingBotVLAAdapter

            of = TorchLingBotVLAAdapter
            self.expected = {key: x for key, x in self.expected.items() if SERVED.match(key)}
        weights = self.weights if weights is None else weights
        found = {}
        for case in self.cases:
            read = {key.removeprefix("model."): x for key, x in weights.items()
                    if case == "q/" or not QUERIES.match(key)}
            found[case] = of.from_reference(self.spec(case), read)
        return found

    def example(self, case: str) -> Example:
        """The training batch."""
        given = {key[3:]: x for key, x in self.inputs.items() if key.startswith("in/")}
        actions, real = given["actions"], self.config["policy"]["action_dim"]
        mask = given.get("joint_mask", np.broadcast_to(np.arange(actions.shape[-1]) < real, actions.shape))
        features = {name: given[f"q_{name.replace('current_depth', 'depth')}_targets"] for name in HEADS
                    } if case == "q/" else {}
        return Example(given["images"], given[f"{case}img_masks".replace("/", "_")], given["lang_tokens"],
                       given["lang_masks"].sum(axis=1), given["state"], actions, mask, features=features)


def real_rows(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """x [B, Lp, ...] with zeros where a token is padding; valid bool [B, at least Lp]."""
    valid = valid[:, :x.shape[1]]
    return np.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)), x, 0)


def vision(golden: LingBotVLAGolden, adapters) -> Found:
    """The tower alone, on a picture whose grid is its own."""
    grid = tuple(golden.inputs["in/ragged_grid_thw"][0, 1:].tolist())
    tokens, taps = next(iter(adapters.values())).look(golden.inputs["in/ragged_rows"][None], grid)
    yield "vit/ragged_out", tokens[0]
    yield from ((f"vit/ragged_deepstack{i}", tap[0]) for i, tap in enumerate(taps))


def whole_case(golden: LingBotVLAGolden, adapters, case: str) -> Found:
    """All that is asked of one model, in the runtime that trains too or in the one that serves."""
    adapter, example = adapters[case], golden.example(case)
    noise, time = golden.inputs["in/noise"], golden.inputs["in/time"]
    noisy = np.asarray(flow_matching.add_noise(example.actions, noise, time))
    yield f"{case}train/v_t", (velocity := adapter.velocity(example, noisy, time))
    yield f"{case}inf/v_at_train_point", velocity
    for name, x in _served(adapter, example, golden.inputs["in/inf_noise"]):
        yield f"{case}inf/{name}", real_rows(x, golden.valid[case]) if PADDED.search(name) else x
    if isinstance(adapter, LingBotVLAAdapter):
        yield from trained(golden, adapter, case, example, noise, noisy, time)


def trained(golden: LingBotVLAGolden, adapter: LingBotVLAAdapter, case: str, example: Example, noise, noisy, time
            ) -> Found:
    """What only the runtime that trains tells."""
    language, expert = adapter.language(example), adapter.expert(example, noisy, time)
    yield f"{case}train/x_t", noisy
    yield f"{case}train/u_t", np.asarray(flow_matching.velocity(example.actions, noise))
    yield from ((f"{case}train/{name}", x) for name, x in _tower(adapter, example))
    for name, x in (*_language(language), *_expert(expert)):
        yield f"{case}train/{name}", real_rows(x, language.valid) if PADDED.search(name) else x
    yield from ((f"{case}train/{name}", x) for name, x in _sequence(adapter.spec, language, expert))
    yield from ((f"{case}inf/{name}", x) for name, x in _prefix(language, expert))
    yield from parity_losses.losses(golden, adapter, case, example, expert)


def _tower(adapter: LingBotVLAAdapter, example: Example) -> Found:
    patches = example.patches
    tokens, taps = adapter.look(patches.reshape(-1, *patches.shape[2:]), adapter.spec.grid)
    for name, x in (("vit_out", tokens), *((f"deepstack{i}", tap) for i, tap in enumerate(taps))):
        yield name, x.reshape(*patches.shape[:2], *x.shape[1:])


def _language(language: Language) -> Found:
    yield "prefix_embs", language.prefix
    yield "visual_pos_mask", language.taps.any(axis=(0, -1)) if len(language.taps) else None
    yield from zip((f"vlm_layer0_{part}" for part in "qkv"), language.projections[0], strict=True)
    yield from ((f"vlm_layer{i}", x) for i, x in enumerate(language.hidden))
    yield "prefix_out", language.output


def _expert(expert: Expert) -> Found:
    yield "suffix_embs", expert.embedded
    yield "time_emb", expert.condition
    yield from zip((f"expert_layer0_{part}" for part in "qkv"), expert.projections[0], strict=True)
    yield from ((f"expert_layer{i}", x) for i, x in enumerate(expert.hidden))
    yield "suffix_out", expert.output
    yield from zip(("moe_in_layer0", "moe_out_layer0"), expert.mlp[0], strict=True)


def _sequence(spec: LingBotVLASpec, language: Language, expert: Expert) -> Found:
    """Who exists, where, and who sees whom, of the joint sequence."""
    valid, (batch, actions) = language.valid, expert.velocity.shape[:2]
    def joint(suffix):
        unseen = np.zeros((batch, valid.shape[1], actions + 1), bool)
        return np.concatenate([np.concatenate([language.mask, unseen], axis=2), suffix], axis=1)
    yield "pad_mask", np.concatenate([valid, np.ones((batch, actions + 1), bool)], axis=1)
    yield "mask_2d", joint(expert.mask)
    blocked = dataclasses.replace(spec, actions_see_future=False)
    yield "mask_2d_block_future_depth", joint(np.asarray(suffix_mask(blocked, jnp.asarray(valid), actions)))
    yield "position_ids", _line(np.concatenate([language.positions, expert.positions], axis=2))


def _line(positions: np.ndarray) -> np.ndarray:
    """Positions on a single axis without it."""
    return positions[0] if len(positions) == 1 else positions


def _prefix(language: Language, expert: Expert) -> Found:
    yield "prefix_mask_2d", language.mask
    yield "prefix_position_ids", _line(language.positions)
    yield "suffix_mask_2d", expert.mask
    yield "suffix_position_ids", _line(expert.positions)
    yield "prefix_out", real_rows(language.output, language.valid)


def _served(adapter, example: Example, noise: np.ndarray) -> Found:
    """Keys and values that are kept of the prefix; Euler steps over them."""
    for i, (keys, values) in enumerate(adapter.keys_values(example)):
        yield from ((f"k_layer{i}", keys), (f"v_layer{i}", values))
    x = noise
    for step, time in enumerate(times(2)[:-1]):
        time = np.full(len(x), time)
        velocity = adapter.velocity(example, x, time)
        yield from ((f"step{step}_{name}", value) for name, value in (("x", x), ("time", time), ("v", velocity)))
        x = x - velocity / 2
    yield "actions", x
    for steps in (4, 10) if adapter.spec.experts else (10,):
        yield f"actions_{steps}steps", adapter.sample(example, noise, steps)
        yield f"times_{steps}steps", times(steps)[:-1]


LingBotVLAGolden.SECTIONS = {"vit": vision, **{name: functools.partial(whole_case, case=case) for name, case in (
    ("train", ""), ("nq", "nq/"), ("q", "q/"))}}
