"""experiment_cfg/ of a DreamZero export: what the public inference server reads beside the weights.

    metadata.json   per robot: its views, the keys of its state and action, and their statistics
    conf.yaml       per robot: how observations become the network's input and actions come back

The server is dreamzero0/dreamzero at ab790c1 (docs/references/dreamzero.md). A robot that the server knows goes by its
names there, others by ours. Dimensions joint_0, joint_1, ... are one key "joint". What the server does otherwise than
training did is told by `differences`.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

STATISTICS = ("max", "min", "mean", "std", "q01", "q99")
TRANSFORM = "groot.vla.data.transform"


class ReferenceRobot(NamedTuple):
    """A robot's names at the server, and the size of the pictures that its clients send."""

    tag: str
    id: int  # number of the prompt's template there
    names: dict[str, str]  # our name -> the server's, of views and keys
    resolution: tuple[int, int] | None = None  # width, height


# Tag -> number, as its configs have them (groot/vla/configs/model/dreamzero/transform/base.yaml). Its collator looks up
# those in SERVED one after another, whatever robot is asked for, and has a prompt for no other.
TAGS = {
    "real_gr1_arms_only": 0, "real_gr1_arms_only_annotated": 1, "real_gr1_arms_waist": 2,
    "real_gr1_arms_waist_annotated": 3, "dexmg_gr1_arms_only_inspire": 4, "dexmg_gr1_arms_only_fourier": 5,
    "dexmg_gr1_arms_waist_fourier": 6, "robocasa_single_arm": 7, "onex_eve_gripper": 8,
    "robocasa_gr1_arms_only_inspire_hands": 9, "robocasa_gr1_arms_only_fourier_hands": 10,
    "robocasa_gr1_fixed_lower_body_inspire_hands": 11, "robocasa_gr1_fixed_lower_body_fourier_hands": 12,
    "robocasa_panda_omron": 13, "robocasa_bimanual_panda_parallel_gripper": 15,
    "robocasa_bimanual_panda_inspire_hand": 16, "oxe_droid": 17, "oxe_fractal": 18, "oxe_language_table": 19,
    "oxe_bridge": 20, "real_panda_single_arm": 21, "hot3d_hands_only": 23, "gr1_unified": 24,
    "robocasa_gr1_arms_waist_fourier_hands": 25, "agibot": 26, "lapa": 27, "oxe_mutex": 28, "oxe_roboset": 29,
    "oxe_plex": 30, "dream": 31, "yam": 32, "xdof": 22, "gr1_unified_segmentation": 14, "language_table_sim": 7,
    "gr1_isaac": 0, "sim_behavior_r1_pro": 31, "mecka_hands": 27, "real_r1_pro_sharpa": 28,
}
SERVED = ("agibot", "oxe_droid", "gr1_unified", "mecka_hands", "xdof", "yam")
# What its policy does whatever an export says (groot/vla/model/dreamzero/action_head/wan_flow_matching_action_tf.py).
ALWAYS = {"evaluate.solver": "unipc", "evaluate.solver_steps": 16, "noise.shift": 5.0, "evaluate.guidance": 5.0,
          "evaluate.action_guidance": 1.0, "evaluate.skipping": "8"}

AGIBOT = ReferenceRobot("agibot", 26, {
    "left_arm": "left_arm_joint_position", "right_arm": "right_arm_joint_position",
    "left_effector": "left_effector_position", "right_effector": "right_effector_position",
    "head": "head_position", "waist": "waist_position", "velocity": "robot_velocity"})
YAM = ReferenceRobot("yam", 32, {
    "top": "top_camera-images-rgb", "left": "left_camera-images-rgb", "right": "right_camera-images-rgb",
    "left_joint": "left_joint_pos", "left_gripper": "left_gripper_pos", "right_joint": "right_joint_pos",
    "right_gripper": "right_gripper_pos"})
DROID = ReferenceRobot("oxe_droid", 17, {
    "joint": "joint_position", "gripper": "gripper_position", "exterior_1": "exterior_image_1_left",
    "exterior_2": "exterior_image_2_left", "wrist": "wrist_image_left"}, (320, 180))
REFERENCE_ROBOTS = {"droid": DROID, "agibot_g1": AGIBOT, "yam": YAM}
RELEASED = "_released"  # ends the names of the robots that stand in slots, and are asked, as the server has it


class ServedRobot(NamedTuple):
    """An embodiment by the server's names."""

    embodiment: Any  # data_pipelines.robots.embodiment.Embodiment
    tag: str
    id: int
    views: tuple[str, ...]
    resolution: tuple[int, int] | None
    keys: dict[str, dict[str, list[int]]]  # state, action: key -> indices of dimensions


def robot_of(robot) -> ServedRobot:
    """An embodiment as the server knows it."""
    known = REFERENCE_ROBOTS.get(_plain(robot.name), ReferenceRobot(robot.name, robot.id, {}))

    def at_server(name: str) -> str:
        return known.names.get(name, name)

    keys = {part: {at_server(key): [i for i, _ in found] for key, found in itertools.groupby(
        enumerate(dimensions), key=lambda pair: re.sub(r"_\d+$", "", pair[1].name))}
        for part, dimensions in (("state", robot.state), ("action", robot.action))}
    return ServedRobot(robot, known.tag, known.id, tuple(map(at_server, robot.views)), known.resolution, keys)


def _plain(name: str) -> str:
    return name.removesuffix("_packed").removesuffix(RELEASED)


def differences(embodiments: list, settings: Mapping[str, Any], text: str) -> Iterator[str]:
    """Yields, as sentences, what the server does otherwise than these embodiments, settings of the sampler and
    unconditional text say."""
    for robot in map(robot_of, embodiments):
        name, known = robot.embodiment.name, _plain(robot.embodiment.name) in REFERENCE_ROBOTS
        if robot.tag not in SERVED:
            yield f"{name}: its server has no such robot; it serves {', '.join(SERVED)}"
        fits = f"; train and export as {_plain(name)}{RELEASED}" if known else ""
        for part in robot.keys:
            dimensions = getattr(robot.embodiment, part)
            moved = [(dim, at) for at, dim in enumerate(dimensions) if dim.slot != at]
            if moved:
                dim, at = moved[0]
                yield (f"{name}: {len(moved)} of {len(dimensions)} {part} dimensions stand in other slots there: "
                       f"{dim.name} was trained in slot {dim.slot}, its server has it in {at}{fits}")
        if angles := robot.embodiment.angles:
            yield (f"{name}: its server scales {robot.embodiment.state[angles[0]].name} as any number; it was trained "
                   "as cosine and sine")
        if known and not name.endswith(RELEASED):
            yield f"{name}: trained with the prompt {robot.embodiment.prompt!r}, its server asks with its own{fits}"
    said = {key: settings.get(key.partition(".")[2].removeprefix("solver_"), value) for key, value in ALWAYS.items()}
    if other := [f"{key} = {said[key]} (there {value})" for key, value in ALWAYS.items() if said[key] != value]:
        yield f"its server samples in its own way: {', '.join(other)}"
    if text != "released":
        yield f"its server's unconditional text is a negative prompt of its own; here it is {text!r}"


def metadata(embodiment, statistics: dict, layout) -> dict:
    """One dataset's entry of metadata.json. "resolution": of a picture as clients send it; of the canvas where nobody
    knows. Statistics of relative actions are those of the differences, as in training."""
    if embodiment.per_step:
        raise ValueError(f"{embodiment.name!r} is declared per_step=True, and this format has one line of statistics "
                         "for all steps of a block: declare it without and train again, or export in another format")
    robot = robot_of(embodiment)
    resolution = list(robot.resolution or (layout.width, layout.height))
    picture = {"resolution": resolution, "channels": 3, "fps": robot.embodiment.rate / layout.frame_stride}
    video = dict.fromkeys(robot.views, picture)
    found, modalities = {}, {"video": video}
    for part, keys in robot.keys.items():
        dimensions, values = getattr(robot.embodiment, part), statistics[part]
        found[part] = {key: {k: [values[k][i] for i in at] for k in STATISTICS} for key, at in keys.items()}
        modalities[part] = {key: {
            "absolute": not _is_relative(dimensions, at), "rotation_type": None, "shape": [len(at)],
            "continuous": True, "slots": [dimensions[i].slot for i in at]} for key, at in keys.items()}
    return {"embodiment_tag": robot.tag, "prompt": robot.embodiment.prompt, "statistics": found,
            "modalities": modalities}


def _is_relative(dimensions: tuple, at: list[int]) -> bool:
    """Whether a key's action is a difference from the state; a state never is."""
    return any(getattr(dimensions[i], "relative_to", None) is not None for i in at)


def conf(embodiments: list, spec, dtype: str, crop: float = 1.0, tokenizer: str = "") -> dict:
    """conf.yaml for those embodiments. crop: the share of each view that is kept; tokenizer: a local folder."""
    robots = [robot_of(embodiment) for embodiment in embodiments]
    relative = sorted({key for r in robots for key, at in r.keys["action"].items()
                       if _is_relative(r.embodiment.action, at)})
    return {
        "model": {"_target_": "groot.vla.model.dreamzero.base_vla.VLA.from_pretrained"},
        "eval_bf16": dtype == "bfloat16",
        "relative_action": bool(relative), "relative_action_per_horizon": False, "relative_action_keys": relative,
        "modality_configs": {r.tag: _modalities(r, spec.layout) for r in robots},
        "transforms": {r.tag: _transforms(r, spec, {o.tag: o.id for o in robots}, crop, tokenizer) for r in robots}}


def _modalities(robot: ServedRobot, layout) -> dict:
    """Which steps and keys the server asks a client for."""
    config = {"_target_": "groot.vla.data.dataset.ModalityConfig"}
    steps = list(range(layout.actions_per_block))
    return {
        "video": {**config, "delta_indices": [*steps, len(steps)], "eval_delta_indices": [0],
                  "modality_keys": _keys("video", robot.views)},
        "state": {**config, "delta_indices": [0], "eval_delta_indices": [0],
                  "modality_keys": _keys("state", robot.keys["state"])},
        "action": {**config, "delta_indices": steps, "modality_keys": _keys("action", robot.keys["action"])},
        "language": {**config, "delta_indices": [0], "modality_keys": ["annotation.language.action_text"]}}


def _transforms(robot: ServedRobot, spec, ids: dict[str, int], crop: float, tokenizer: str) -> dict:
    """The chain from observation to input: pictures to the model's size, numbers to [-1, 1], prompt to tokens."""
    keys = {"video": _keys("video", robot.views)} | {part: _keys(part, robot.keys[part]) for part in robot.keys}
    # Views are tiled on a canvas of so many columns, and as many rows.
    layout, columns = spec.layout, 1 if len(robot.views) == 1 else 2
    cut = [("VideoCrop", {"scale": crop, "mode": "random"})] if crop < 1 else []
    video = [("VideoToTensor", {}), *cut,
             ("VideoResize", {"height": layout.height // columns, "width": layout.width // columns,
                              "interpolation": "linear"}), ("VideoToNumpy", {})]
    chain = [{"_target_": f"{TRANSFORM}.{name}", "apply_to": keys["video"], **settings} for name, settings in video]
    for part in ("state", "action"):
        chain += [{"_target_": f"{TRANSFORM}.StateActionToTensor", "apply_to": keys[part]},
                  {"_target_": f"{TRANSFORM}.StateActionTransform", "apply_to": keys[part],
                   "normalization_modes": dict.fromkeys(keys[part], "q99")}]
    chain += [{"_target_": f"{TRANSFORM}.ConcatTransform", **{f"{part}_concat_order": keys[part] for part in keys}},
              {"_target_": "groot.vla.model.dreamzero.transform.dreamzero_cotrain.DreamTransform",
               "default_instruction": "Perform the default behavior.", "language_dropout_prob": 0.0,
               "always_use_default_instruction": False, "max_state_dim": spec.state_dim,
               "max_action_dim": spec.action_dim, "max_length": spec.text_length, "state_horizon": 1,
               "action_horizon": spec.layout.actions_per_block, "tokenizer_path": tokenizer or "google/umt5-xxl",
               "embodiment_tag_mapping": TAGS | ids}]
    return {"_target_": f"{TRANSFORM}.ComposedModalityTransform", "transforms": chain}


def _keys(part: str, names) -> list[str]:
    return [f"{part}.{name}" for name in names]


def write_conf(path: Path, settings: dict) -> None:
    """Writes YAML without anchors: what is written twice stands twice."""
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True

    path.write_text(yaml.dump(settings, Dumper=Plain, sort_keys=False))
