"""An export in LeRobot's layout: what `launch.export --format=lerobot` writes and plugins/lerobot_policy_wamax reads.

    config.json                      of policy type "wamax": LeRobot's features, and under "wamax" what is ours
    model.safetensors                the weights; of an export in several files model-00001-of-0000N.safetensors ...
    policy_preprocessor.json, policy_postprocessor.json, and beside each the statistics in safetensors
    README.md                        the model card: provenance, licence, parity
    wamax/                           all else of an export (launch/export.py)

LeRobot's steps carry the statistics and leave values as they are: the robot's own transform normalises, as in every
other runtime. Nothing here needs LeRobot. Layout of LeRobot 0.6.1 (lerobot/configs/policies.py, processor/pipeline.py).
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from safetensors.numpy import save_file

from data_pipelines.robots.robot import Robot
from launch.setup import mixture
from launch.setup.restore import Restored
from world_model import kinds
from world_model.weights.tensor_files import WeightsError, read_json

FORMAT, TYPE, VERSION = "lerobot", "wamax", 1  # VERSION: of this layout, which the plug-in of that number reads
INSIDE = "wamax"
STATE, ACTION = "observation.state", "action"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
_NAMES = kinds.map_of(kinds.text)
_WAMAX = kinds.fields({"embodiment": kinds.text, "dataset": kinds.text, "cameras": _NAMES, "weights": _NAMES},
                     required=("embodiment", "dataset", "cameras", "weights"))
AS_IT_IS = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")


def pack(folder: Path, restored: Restored, robot: Robot, license: str | None) -> None:
    """Makes LeRobot's layout of `folder`, whose subfolder INSIDE is a whole export."""
    keys = camera_keys(restored, robot)
    features = make_features(robot, keys)
    ours = {"version": VERSION, "embodiment": robot.embodiment.name, "dataset": robot.statistics["dataset"],
            "cameras": keys, "weights": move_weights(folder)}
    config = {"type": TYPE, "license": license, "tags": ["wamax"], **features, "n_action_steps": robot.horizon,
              "wamax": ours}
    _write_json(folder / "config.json", config)
    write_processors(folder, robot, features)
    (folder / "README.md").write_text(model_card(folder, robot, features, license))


def camera_keys(restored: Restored, robot: Robot) -> dict[str, str]:
    """{view: LeRobot's key} of the robot's cameras: the key in the set that was trained on, where that was LeRobot's,
    or the view's name."""
    entry = mixture.entries(restored.config.data.datasets).get(robot.statistics["dataset"], {})
    trained = dict(entry.get("images", {}))
    own = {view: key for view, key in trained.items() if str(key).startswith("observation.")}
    return {view: own.get(view, f"observation.images.{view}") for view in robot.embodiment.views}


def make_features(robot: Robot, cameras: Mapping[str, str]) -> dict:
    """LeRobot's input_features and output_features. Pictures may be of any size: the robot's transform scales them."""
    height, width = robot.layout.height, robot.layout.width
    inputs = {key: {"type": "VISUAL", "shape": [3, height, width]} for key in cameras.values()}
    if robot.embodiment.state:
        inputs[STATE] = {"type": "STATE", "shape": [len(robot.embodiment.state)]}
    return {"input_features": inputs,
            "output_features": {ACTION: {"type": "ACTION", "shape": [len(robot.embodiment.action)]}}}


def move_weights(folder: Path) -> dict[str, str]:
    """Moves the weights out of INSIDE to where LeRobot has them; {file in the folder: path inside}."""
    inside = folder / INSIDE
    found = sorted(path for path in inside.rglob("*.safetensors") if path.parent != inside / "encoders")
    moved = {}
    for number, path in enumerate(found, start=1):
        name = "model.safetensors" if len(found) == 1 else f"model-{number:05d}-of-{len(found):05d}.safetensors"
        path.rename(folder / name)
        moved[name] = path.relative_to(inside).as_posix()
    return moved


def write_processors(folder: Path, robot: Robot, features: dict) -> None:
    """Writes both of LeRobot's pipelines, as its `make_default_pre_post_processors` would save them."""
    scale = {"eps": 1e-8, "features": features["input_features"] | features["output_features"], "norm_map": AS_IT_IS}
    before = [("rename_observations_processor", {"rename_map": {}}), ("to_batch_processor", {}),
              ("device_processor", {"device": "cpu", "float_dtype": None}), ("normalizer_processor", scale)]
    after = [("unnormalizer_processor", scale), before[2]]
    for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        written = [{"registry_name": step, "config": config} for step, config in steps]
        at = next(i for i, (step, _) in enumerate(steps) if step.endswith("normalizer_processor"))
        file = f"{name}_step_{at}_{steps[at][0]}.safetensors"
        written[at]["state_file"] = file
        save_file(statistics(robot), folder / file)
        (folder / file).chmod(0o644)
        _write_json(folder / f"{name}.json", {"name": name, "steps": written})


def statistics(robot: Robot) -> dict[str, np.ndarray]:
    """LeRobot's flat names -> float32 [dimensions] or, per step, [steps, dimensions]: what was trained with, of
    actions as they are predicted."""
    found = {}
    for part, key in (("state", STATE), ("action", ACTION)):
        for name, values in (robot.statistics[part] or {}).items():
            if isinstance(values, list):
                found[f"{key}.{name}"] = np.float32(values)
    return found


def model_card(folder: Path, robot: Robot, features: dict, license: str | None) -> str:
    """README.md: what it is, what it comes from, how it was checked, how it is run."""
    provenance, parity = (read_json(folder / INSIDE / f"{name}.json", kinds.MAP) for name in ("provenance", "parity"))
    each = features["input_features"] | features["output_features"]
    names = {STATE: robot.embodiment.state, ACTION: robot.embodiment.action}
    rows = [f"| `{key}` | {one['type']} | {one['shape']} | {', '.join(dim.name for dim in names.get(key, ()))} |"
            for key, one in each.items()]
    base = provenance["base"]
    head = ["library_name: lerobot", "pipeline_tag: robotics", "tags: [robotics, lerobot, wamax]",
            *([f"license: {license}"] if license else [])]
    return "\n".join([
        "---", *head, "---", "", f"# A {provenance['family']} policy of Wamax for {robot.embodiment.name}", "",
        "    pip install WAMAX/plugins/lerobot_policy_wamax    # WAMAX: a checkout",
        "    lerobot-eval --policy.path=THIS_FOLDER --env.type=...", "",
        "| feature | type | shape | dimensions |", "|---|---|---|---|", *rows, "",
        f"A chunk has {robot.horizon} actions at {robot.embodiment.rate:g} Hz, absolute, in the robot's units.", "",
        "## Provenance", "",
        f"- step {provenance['step']} ({provenance['weights']} weights, {provenance['dtype']}), code "
        f"{provenance['code_version'] or 'of unknown version'}",
        f"- statistics of dataset {robot.statistics['dataset']!r}, hash {provenance['statistics_hash']}",
        f"- trained from {'published weights: ' + json.dumps(base) if base else 'scratch'}",
        "- config: `wamax/provenance.json`", "", "## Licence", "",
        license or "Not stated by whoever exported it; the data's and the base's conditions hold.", "",
        "## Parity", "",
        f"The largest difference between the JAX model and the {parity['compared_with']} is {parity['max']:.3g}; "
        f"{parity['tolerance']:g} is allowed (`wamax/parity.json`).", ""])


def inside(directory: Path) -> Path:
    """Where an export's statistics, provenance and encoders stand."""
    return directory / INSIDE if (directory / INSIDE).is_dir() else directory


@contextlib.contextmanager
def plain_export(directory: str | Path) -> Iterator[Path]:
    """The directory as runtimes load it: itself, or links to what `pack` has arranged otherwise. Raises WeightsError
    where a file is missing, or the folder is of another version."""
    directory = Path(directory)
    if (own := inside(directory)) == directory:
        yield directory
        return
    links = {path.relative_to(own).as_posix(): path for path in own.rglob("*") if path.is_file()}
    links |= {where: directory / name for name, where in read_config(directory)["weights"].items()}
    with tempfile.TemporaryDirectory() as made:
        for where, path in links.items():
            if not path.exists():
                raise WeightsError(f"{path}: missing; fetch the folder again, or export the run again")
            link = Path(made, where)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        yield Path(made)


def read_config(folder: str | Path) -> dict:
    """Our part of config.json. Raises WeightsError where it is of another version, or is none of ours."""
    path = Path(folder) / "config.json"
    found = read_json(path, kinds.fields({"wamax": kinds.MAP}), f"give a folder of launch.export --format={FORMAT}")
    if found.get("type") != TYPE:
        raise WeightsError(f"{path}: expected a policy of type {TYPE!r}, found {found.get('type')!r}; give a folder of "
                           f"launch.export --format={FORMAT}")
    return check_config(found.get("wamax", {}), f"{path}: wamax")


def check_config(ours: dict, where: str) -> dict:
    """Our part of a config, which stands at `where`. Raises WeightsError where it is of another version, or leads
    elsewhere."""
    if ours.get("version") != VERSION:
        raise WeightsError(f"{where} is for version {ours.get('version')} of lerobot_policy_wamax, and this is version "
                           f"{VERSION}: install that one, or export the run again with this Wamax")
    try:
        kinds.check(ours, _WAMAX, where)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    for name, place in ((PurePosixPath(a), PurePosixPath(b)) for a, b in ours["weights"].items()):
        if name.parts != (name.name,) or place.is_absolute() or ".." in (*name.parts, *place.parts):
            raise WeightsError(f"{where}: weights {str(name)!r} at {str(place)!r}: expected a file's name and a path "
                               f"inside {INSIDE}/")
    return ours


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
