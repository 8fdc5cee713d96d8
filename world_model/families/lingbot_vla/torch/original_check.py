"""An export of LingBot-VLA's version 1 in the published package: original_run.py runs there, and what it tells is
compared here.

Compared are a velocity where a camera is missing, and of one request what the package makes of pictures, state and
prompt, what it samples from the same noise, and the commands.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch  # extra: torch

from world_model.families.base import original
from world_model.families.base.export import OriginalRun, normal
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.spec import MERGE, LingBotVLASpec
from world_model.families.lingbot_vla.torch import original_run
from world_model.families.lingbot_vla.torch.adapter import TorchLingBotVLAAdapter
from world_model.families.lingbot_vla.torch.network import load
from world_model.families.lingbot_vla.torch.vision import make_patches
from world_model.families.lingbot_vla.weights import norm_stats
from world_model.families.lingbot_vla.weights.released_format import VERSIONS

STATE_SHARE = 0.9  # the state's share of the normalised range, beyond which we may clip and the package does not


def check(directory: Path, checkout: Path, python: str, experiment: Any, robot: Callable[[], Any]) -> OriginalRun:
    """Runs `python`, which has the package; there is no checkout. robot: makes a data_pipelines Robot.

    Raises ValueError where the package cannot run the model or the robot, or ends with an error; its last words are
    told.
    """
    network, spec, settings = load(directory)
    driven = robot()
    if VERSIONS[spec.vision].number != 1:
        raise ValueError("the class of LingBot-VLA's version 2 is in no published package: only exports of version 1 "
                         "can be checked in the original")
    if spec.depth_queries:
        raise ValueError("model.depth_queries: the package makes these at random whenever it is built, so that nothing "
                         "it computes can be compared")
    if (table := norm_stats.table_of(driven.embodiment, 1)) is None:
        raise ValueError(f"{driven.embodiment.name!r} has its state and action in different slots, which the original "
                         "cannot")
    asked = _inputs(spec, driven, table)
    found = original.ask(original_run.__file__, python, checkout, asked, str(Path(directory).resolve()))
    adapter = TorchLingBotVLAAdapter(spec, network)
    expected = dict(_expected(adapter, settings.get("steps", 10), driven, asked, found))
    prompt = spec.prompt.replace("{}", driven.prompt(original.INSTRUCTION))
    return OriginalRun({name: (x, _original_value(found, name, driven, table)) for name, x in expected.items()},
                       original.unmatched(found), original.prompts(prompt, found))


def _inputs(spec: LingBotVLASpec, robot, table: norm_stats.GroupSlots) -> dict[str, np.ndarray]:
    """A training sample whose last camera is missing, and what a client sends: pictures [H, W, 3] by camera, the state
    by group of joints, a prompt; with the noise of its actions."""
    rng, actions, known = np.random.default_rng(0), (spec.layout.actions_per_block, spec.action_dim), robot.embodiment
    view_mask = np.arange(spec.views)[None] < max(1, spec.views - 1)

    forward = {"patches": normal(rng, spec.views, spec.patches, spec.patch_values), "view_mask": view_mask,
               "text_ids": rng.integers(0, spec.vocab_size, (1, spec.text_length)),
               "words": np.arange(spec.text_length)[None] < spec.text_length // 2 + 1,
               "state": normal(rng, spec.state_dim), "actions": normal(rng, *actions),
               "noise": normal(rng, *actions), "time": np.array([0.6], np.float32)}
    state = robot.scale("state").denormalise(rng.uniform(-STATE_SHARE, STATE_SHARE, len(known.state)))
    request = {"prompt": np.array(original.INSTRUCTION), "noise": normal(rng, *actions),
               **{f"view/{name}": rng.integers(0, 256, (spec.layout.height, spec.layout.width, 3), np.uint8)
                  for name in known.views},
               **{f"state/{name}": state[at] for name, at in norm_stats.groups(table, known.state).items()}}
    return {"sizes": np.array(json.dumps(_sizes(spec, known.views))), "robot_state": state,
            **{f"forward/{name}": x for name, x in forward.items()},
            **{f"request0/{name}": x for name, x in request.items()}}


def _sizes(spec: LingBotVLASpec, cameras: tuple[str, ...]) -> dict:
    """The sizes as the package's configs call them, with the names of all cameras."""
    heads = {"num_attention_heads": spec.num_heads, "num_key_value_heads": spec.kv_heads,
             "num_hidden_layers": spec.num_layers, "vocab_size": spec.vocab_size, "rms_norm_eps": 1e-6}
    each = spec.head_dim // 8
    vision = {"depth": spec.vision_layers, "hidden_size": spec.vision_dim, "intermediate_size": spec.vision_ffn_dim,
              "num_heads": spec.vision_heads, "out_hidden_size": spec.dim, "patch_size": spec.vision_patch,
              "spatial_patch_size": spec.vision_patch, "window_size": spec.vision_window * MERGE * spec.vision_patch,
              "fullatt_block_indexes": list(spec.vision_full_layers)}
    rotary = {"type": "default", "rope_type": "default", "mrope_section": [each, each, 2 * each]}  # nothing reads it
    return {"language": heads | {"hidden_size": spec.dim, "intermediate_size": spec.ffn_dim, "rope_scaling": rotary,
                                 "tie_word_embeddings": True, "vision_config": vision},
            "expert": heads | {"hidden_size": spec.expert_dim, "intermediate_size": spec.expert_ffn_dim,
                               "head_dim": spec.head_dim},
            "views": [*cameras, *(f"none {i}" for i in range(len(cameras), spec.views))]}


def _expected(adapter: TorchLingBotVLAAdapter, steps: int, robot, asked: Mapping, found: Mapping
              ) -> Iterator[tuple[str, np.ndarray]]:
    """Our results."""
    given = {name.removeprefix("forward/"): x for name, x in asked.items() if name.startswith("forward/")}
    sample = Example(given["patches"], given["view_mask"], given["text_ids"], given["words"].sum(1), given["state"])
    time = given["time"][:, None, None]
    yield "forward/velocity", adapter.velocity(
        sample, time * given["noise"] + (1 - time) * given["actions"], given["time"])
    views, view_mask = robot.views({name: asked[f"request0/view/{name}"][None] for name in robot.embodiment.views})
    patches = make_patches(adapter.spec, torch.from_numpy(views)[None]).numpy()
    state = robot.state(asked["robot_state"])
    yield "request0/patches", patches[0] * view_mask[:, None, None]
    yield "request0/state", state
    ids = found["request0/text_ids"]
    words = np.array([len(found["request0/texts/0"][0].encode())])
    yield "request0/actions", adapter.sample(
        Example(patches, view_mask[None], ids[None], words, state[None]), asked["request0/noise"], steps)
    yield "request0/commands", robot.commands(found["request0/actions"][0], asked["robot_state"])


def _original_value(found: Mapping, name: str, robot, table: norm_stats.GroupSlots) -> np.ndarray:
    """The original's value of an entry; its commands are by group."""
    if not name.endswith("/commands"):
        return found[name]
    groups = norm_stats.groups(table, robot.embodiment.action)
    order = np.argsort([i for at in groups.values() for i in at])
    return np.concatenate([found[f"{name}/{group}"] for group in groups], 1)[:, order]
