"""Published layouts that hold a LingBot-VLA network, or the vision-language model that it grows from.

    lingbot_vla     version 1: DIR/checkpoints/global_step_N/hf_ckpt/model*.safetensors, hf_ckpt itself or its copy
    lingbot_vla_v2  version 2, likewise
    qwen2_5_vl      Qwen2.5-VL alone: DIR/model*.safetensors; the action expert and its projections begin afresh
    qwen3_vl        Qwen3-VL alone, likewise
"""

import functools
from pathlib import Path

from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.weights import names
from world_model.families.lingbot_vla.weights.released_format import (
    PREFIX,
    VERSIONS,
    WEIGHTS,
    check_config,
    read_statistics,
)
from world_model.weights.formats import Component, InitRule, PublishedFormat
from world_model.weights.safetensors_io import WeightsError

ACTION_PARTS = r"^(expert_|state_embedding|action_|time_fc)"
EXPERT = InitRule(ACTION_PARTS, "a vision-language model has no actions")
QUERIES = InitRule(r"^queries\.", "a vision-language model has neither query tokens nor heads of teachers")
ADAPTERS = InitRule(r"\.lora_[ab]$", "a base has no adapters; they begin as nothing")
DEPTH = InitRule(r"^depth_seeds$", "released depth queries are random and kept in no file")
TEACHERS = (Component(rf"{PREFIX}depth_align_head\.", "head of a teacher of depth, which training alone reads"),)
NEXT_WORD = (Component(r"lm_head\.", "head of the next word"),)
WHOLE = Component(f"{PREFIX}{names.VLM}", "is of a LingBot-VLA with its expert; say --format=lingbot_vla, or "
                  "--format=lingbot_vla_v2")


def other_version(vision: str) -> Component:
    """What the weights of the other version than that of a vision tower are known by."""
    found = next(version for tower, version in VERSIONS.items() if tower != vision)
    prefix = next(prefixes[0] for tower, prefixes in names.PREFIXES.items() if tower != vision)
    return Component(PREFIX + prefix, f"is of LingBot-VLA version {found.number}; take a config of that version and "
                     f"say --format={found.format_name}")


def check_tower(vision: str, folder: Path, spec: LingBotVLASpec) -> None:
    """Raises WeightsError where the config is of the other version."""
    if spec.vision != vision:
        mine, theirs = VERSIONS[spec.vision], VERSIONS[vision]
        raise WeightsError(f"{folder}: this format is of LingBot-VLA version {theirs.number}, on {theirs.base}; the "
                           f"config is of version {mine.number}, on {mine.base} (model.vision = {spec.vision!r})")


def check(vision: str, folder: Path, spec: LingBotVLASpec) -> None:
    """See `PublishedFormat.check`."""
    check_tower(vision, folder, spec)
    check_config(folder, spec)


def _whole(vision: str, components: tuple[Component, ...] = ()) -> PublishedFormat:
    return PublishedFormat(
        "model", ("", "hf_ckpt", WEIGHTS), (PREFIX,), names.TABLES[vision], (DEPTH, ADAPTERS),
        components, mistaken=(other_version(vision),), check=functools.partial(check, vision),
        read_statistics=functools.partial(read_statistics, VERSIONS[vision].number))


def _alone(vision: str, prefix: str, table: names.NameTable) -> PublishedFormat:
    return PublishedFormat(
        "model", ("",), (prefix,), table, (EXPERT, QUERIES, DEPTH, ADAPTERS), NEXT_WORD,
        mistaken=(WHOLE,), check=functools.partial(check_tower, vision))


IMPORTS = {
    "lingbot_vla": _whole("qwen2_5", TEACHERS),
    "lingbot_vla_v2": _whole("qwen3"),
    "qwen2_5_vl": _alone("qwen2_5", "", names.QWEN2_5_VL),
    "qwen3_vl": _alone("qwen3", "model.", names.QWEN3_VL),
}
