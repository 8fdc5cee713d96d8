"""The released layout of LingBot-VLA's weights: its directory is written, and what its configs say is checked.

    lingbotvla_cli.yaml                                the run's arguments, which the released servers read
    checkpoints/global_step_N/hf_ckpt/config.json      and model-0000i-of-0000N.safetensors with their index
    norm_stats/DATASET.json                            normalisation (norm_stats.py)
    wamax.json                                         ours alone: sizes, layout, settings of sampling

As Robbyant/lingbot-vla at 61ef6b1 (deploy/lingbot_robotwin_policy.py) and Robbyant/lingbot-vla-v2 at 36a9bab
(deploy/lingbot_vla_v2_policy.py) read it; docs/references/lingbot_vla.md. Names are in names.py.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml

from world_model import kinds
from world_model.batch import Layout
from world_model.families.lingbot_vla.spec import MERGE, LingBotVLASpec
from world_model.families.lingbot_vla.weights import norm_stats
from world_model.families.lingbot_vla.weights.names import TABLES
from world_model.weights import names, safetensors_io
from world_model.weights.tensor_files import WeightsError, read_json

PREFIX = "model."  # prefix of every tensor's name
WEIGHTS = "checkpoints/global_step_*/hf_ckpt"
ARGUMENTS, SETTINGS, STATISTICS = "lingbotvla_cli.yaml", "wamax.json", "norm_stats"


_SECTION = kinds.optional(kinds.MAP)
_SECTIONS = {"train": kinds.optional(kinds.fields({"align_params": kinds.optional(kinds.fields({"depth": _SECTION}))})),
             "data": kinds.optional(kinds.fields({"joints": kinds.optional(kinds.list_of(kinds.anything))})),
             "model": _SECTION}
_ARGUMENTS = kinds.fields(_SECTIONS)
_SETTINGS = kinds.fields({"spec": kinds.fields({}, required=("layout",)), "rollout": kinds.MAP,
                          "dtype": kinds.text}, required=("spec", "rollout", "dtype"))


class Version(NamedTuple):
    """What is called otherwise in the two versions."""

    number: int
    format_name: str
    base: str  # the vision-language model, by whose name the servers know the version
    sizes: dict[str, int]  # sizes that the servers' code and that model fix


VERSIONS = {  # by the vision tower's name
    "qwen2_5": Version(1, "lingbot_vla", "Qwen2.5-VL-3B-Instruct", {
        "dim": 2048, "num_layers": 36, "num_heads": 16, "kv_heads": 2, "expert_dim": 768}),
    "qwen3": Version(2, "lingbot_vla_v2", "Qwen3-VL-4B-Instruct", {
        "dim": 2560, "num_layers": 36, "num_heads": 32, "kv_heads": 8, "expert_dim": 768})}


def write(directory: Path, spec: LingBotVLASpec, params: Mapping[str, jax.Array], *, step: int = 0,
          rollout: Mapping | None = None, robots: Mapping[str, Any] | None = None, statistics: Mapping | None = None,
          dtype=np.float32, shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes weights, tensor by tensor, and all that stands beside them.

    rollout: settings of torch/sampler.py's LingBotVLATorchSampler. robots and statistics: by dataset.
    """
    folder = directory / WEIGHTS.replace("*", str(step))
    folder.mkdir(parents=True)
    tensors = ((PREFIX + name, x.astype(dtype))
               for name, x in names.to_published(params, spec.head_dim, TABLES[spec.vision]))
    safetensors_io.write(folder, tensors, shard_bytes)
    _write_json(folder / "config.json", config(spec, dict(rollout or {})))
    (directory / STATISTICS).mkdir()
    for dataset, robot in (robots or {}).items():
        if table := norm_stats.table_of(robot, VERSIONS[spec.vision].number):
            _write_json(directory / STATISTICS / f"{dataset}.json",
                        norm_stats.published(robot, table, statistics[dataset]))
    (directory / ARGUMENTS).write_text(yaml.safe_dump(arguments(spec, robots or {}), sort_keys=False))
    _write_json(directory / SETTINGS, {
        "family": "lingbot_vla", "spec": dataclasses.asdict(spec) | {"layout": spec.layout.as_json()},
        "rollout": dict(rollout or {}), "dtype": np.dtype(dtype).name})


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_settings(directory: str | Path) -> tuple[LingBotVLASpec, dict, str]:
    """Returns (sizes, settings of the sampler, dtype of the weights) of what `write` wrote. Raises WeightsError where
    wamax.json is not there."""
    path = Path(directory) / SETTINGS
    found = read_json(path, _SETTINGS, f"{directory} is no export of a LingBot-VLA model")
    layout = kinds.make(Layout, found["spec"]["layout"], f"{path}: spec: layout")
    spec = kinds.make(LingBotVLASpec, found["spec"], f"{path}: spec", layout=layout)
    return spec, found["rollout"], found["dtype"]


def weights_folder(directory: str | Path) -> Path:
    """Where an export has its tensors. Raises WeightsError where that is not there."""
    found = sorted(Path(directory).glob(WEIGHTS))
    if not found:
        raise WeightsError(f"{Path(directory) / WEIGHTS}: missing; {directory} is no export of a LingBot-VLA model")
    return found[0]


def config(spec: LingBotVLASpec, rollout: Mapping) -> dict:
    """config.json: of version 1 the fields of LeRobot's PI0Config, as which it is read; of version 2 the architecture,
    which is read from lingbotvla_cli.yaml."""
    if VERSIONS[spec.vision].number == 2:
        return {"architectures": ["LingbotVlaV2Policy"], "model_type": "lingbotvla", "vlm_family": "qwen3_vl"}
    layout = spec.layout
    return {"type": "pi0", "n_obs_steps": 1, "chunk_size": layout.actions_per_block,
            "n_action_steps": layout.actions_per_block, "max_state_dim": spec.state_dim,
            "max_action_dim": spec.action_dim, "resize_imgs_with_padding": [layout.height, layout.width],
            "tokenizer_max_length": spec.text_length, "num_steps": rollout.get("steps", 10), "use_cache": True,
            "attention_implementation": "eager", "freeze_vision_encoder": False, "train_expert_only": False,
            "train_state_proj": True}


def arguments(spec: LingBotVLASpec, robots: Mapping[str, Any]) -> dict:
    """lingbotvla_cli.yaml: a run's arguments, as far as the released servers read them. Its data section is that of the
    first robot, by dataset; the paths in it count from the export's directory."""
    version = VERSIONS[spec.vision]
    train = {"action_dim": spec.action_dim, "max_action_dim": spec.action_dim, "max_state_dim": spec.state_dim,
             "chunk_size": spec.layout.actions_per_block, "tokenizer_max_length": spec.text_length,
             "vlm_causal": spec.prefix == "causal", "norm_qkv": False}
    model = {"tokenizer_path": version.base, "vocab_size": spec.vocab_size, "post_training": True, "adanorm_time": True}
    if version.number == 1:
        model["old_adanorm"] = True
    else:
        model["config_key"] = "LingbotVLAV2Config"
        train |= _mixture(spec) | ({"align_params": _alignment(spec)} if spec.query_tokens else {})
    data = {"datasets_type": "vla", "img_size": spec.layout.height}
    for dataset in sorted(robots)[:1]:
        if table := norm_stats.table_of(robots[dataset], version.number):
            data |= {"data_name": dataset, "norm_stats_file": f"{STATISTICS}/{dataset}.json",
                     **norm_stats.arguments(robots[dataset], table, version.number)}
    return {"model": model, "data": data, "train": train}


def _alignment(spec: LingBotVLASpec) -> dict:
    """Version 2's arguments of query tokens and of their teachers' heads."""
    head = {"num_layers": 1, "num_heads": spec.teacher_heads, "dim_head": spec.teacher_head_width, "ff_mult": 1,
            "num_backbone_tokens": spec.query_seeds, "dim_out": spec.teacher_width}
    side, pixels = spec.grid[0] // MERGE, spec.layout.height
    return {"mode": "query", "num_task_tokens": spec.query_tokens, "use_future_video": True,
            "llm": {"dim_out": spec.dim, "image_token_size": side, "image_input_size": pixels},
            "depth": head | {"model_type": "MoRGBD", "token_size": round(spec.query_seeds**0.5), "input_size": pixels,
                             "use_future_depth": True, "detach_future_image_feats": True,
                             "block_future_depth_to_action": not spec.actions_see_future},
            "video": head | {"share_future_depth_query": True, "use_shared_future_task_proj": True,
                             "use_patch_loss": True, "use_current_patch_loss": True,
                             "use_current_shared_task_proj": True}}


def other_sizes(spec: LingBotVLASpec) -> Iterator[str]:
    """Yields a sentence where the released servers build a model of other sizes."""
    version = VERSIONS[spec.vision]
    if (found := {key: getattr(spec, key) for key in version.sizes}) != version.sizes:
        yield f"its server and {version.base} fix the sizes {version.sizes}; this model has {found}"


def _mixture(spec: LingBotVLASpec) -> dict:
    """Version 2's arguments of the expert."""
    return {"expert_hidden_size": spec.expert_dim, "action_num_attention_heads": spec.num_heads,
            "action_num_key_value_heads": spec.kv_heads, "action_head_dim": spec.head_dim, "use_moe": True,
            "token_moe_layers": list(range(spec.num_layers)), "token_num_experts": spec.experts,
            "token_top_k": spec.experts_per_token, "token_moe_intermediate_size": spec.routed_ffn_dim,
            "token_shared_intermediate_size": spec.shared_ffn_dim, "router_activation": "sigmoid",
            "routed_scaling_factor": spec.routed_scale, "use_shared_expert_gate": False}


def find_arguments(folder: Path) -> tuple[Path | None, dict]:
    """(path, content) of the lingbotvla_cli.yaml of the weights in `folder`; (None, {}) where they stand alone."""
    path = next((place / ARGUMENTS for place in (folder, *folder.absolute().parents[:3])
                 if (place / ARGUMENTS).exists()), None)
    if path is None:
        return None, {}
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is not YAML: {error}") from error
    if problem := kinds.optional(_ARGUMENTS)(found):
        raise WeightsError(f"{path}{problem}")
    return path, {section: found[section] for section in _SECTIONS if found.get(section)} if found else {}


def read_statistics(version: int, file: Path, folder: Path, robot, actions_per_block: int) -> dict:
    """See `PublishedFormat.read_statistics`."""
    joints = find_arguments(folder)[1].get("data", {}).get("joints")
    return norm_stats.read(file, joints, version, robot, actions_per_block)


CHECKED = ("vlm_causal", "router_activation", "token_top_k", "routed_scaling_factor", "use_shared_expert_gate")


def check_config(folder: Path, spec: LingBotVLASpec) -> None:
    """Raises WeightsError, naming file, key, expected and found, where the lingbotvla_cli.yaml of the weights in
    `folder` is of a model that computes otherwise, in what tensors cannot tell."""
    path, found = find_arguments(folder)
    train = found.get("train", {})
    expected = arguments(spec, {})["train"]
    for key in CHECKED:
        if key in train and key in expected and train[key] != expected[key]:
            raise WeightsError(f"{path}: train.{key}: expected {expected[key]} from the model's config, found "
                               f"{train[key]}")
    aligned = train.get("align_params") or {}
    hidden = (aligned.get("depth") or {}).get("block_future_depth_to_action", False)
    if aligned and spec.query_tokens and (aligned.get("num_task_tokens"), not hidden) != (
            spec.query_tokens, spec.actions_see_future):
        raise WeightsError(f"{path}: train.align_params: expected num_task_tokens = {spec.query_tokens} (model."
                           f"query_tokens) and depth.block_future_depth_to_action = {not spec.actions_see_future} (not "
                           f"model.actions_see_future), found {aligned.get('num_task_tokens')} and {hidden}")
