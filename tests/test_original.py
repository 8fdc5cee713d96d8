"""Exports in the original's hands: what its policy answered once (goldens/dreamzero_policy_tiny.npz), and how it refuses.

The file holds what `original_run.py` told of the export below on a checkout of dreamzero0/dreamzero at ab790c1, with
that project's packages on a CPU. Measured again with

    .venv/bin/python -m tests.test_original OUT; python -m launch.export --out=OUT --check=original --path=CHECKOUT ...
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import dreamzero_14b
from data_pipelines.robots.embodiments import get_embodiment
from launch.exporting import original
from launch.setup import provenance
from launch.setup.experiment import Experiment
from world_model.families.base.export import Trained
from world_model.families.dreamzero.weights import export as dreamzero_export
from world_model.families.dreamzero.weights import reference_format

ANSWERS = Path(__file__).parent / "goldens/dreamzero_policy_tiny.npz"


def write_export(out: Path, robot: str = "droid_released") -> Path:
    """A 14B of 2 layers and width 64 without image features, random and always the same; views are cut to 0.95."""
    config = dreamzero_14b.get_config("debug")
    config.model.update(num_layers=2, image_dim=0, rollout_visibility="dreamzero_state_sees_all")
    config.data.crop = 0.95
    experiment, rng, embodiment = Experiment(config), np.random.default_rng(0), get_embodiment(robot)
    params = {name: (0.2 * rng.normal(size=x.shape) + name.endswith("scale")).astype(np.float32)
              for name, x in sorted(experiment.model.shapes.items())}

    def values(count):
        low, high = rng.uniform(-2, -1, count), rng.uniform(1, 2, count)
        return {"q01": low.tolist(), "q99": high.tolist(), "min": (low - 0.1).tolist(), "max": (high + 0.1).tolist(),
                "mean": [0.0] * count, "std": [1.0] * count}

    statistics = {"arms": {"dataset": "arms", "embodiment": robot, "actions_per_block": 24,
                           "state": values(len(embodiment.state)), "action": values(len(embodiment.action))}}
    trained = Trained(experiment.model, params, {}, statistics, {"arms": embodiment}, "", crop=config.data.crop)
    out.mkdir(parents=True)
    dreamzero_export.write_experiment(out, trained, np.dtype("float32"))
    reference_format.write(out, experiment.model.spec, params, rollout={})
    (out / "statistics.json").write_text(json.dumps(statistics))
    (out / "provenance.json").write_text(json.dumps({"family": "dreamzero", "step": 0, "config": provenance.as_json(config)}))
    return out


def interpreter(directory: Path, lines: str) -> str:
    """A program in the place of the original's interpreter; $work is the folder of the answers."""
    path = directory / "python"
    path.write_text(f"#!/bin/sh\nfor work; do :; done\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def test_its_policy_answers_as_we_do(tmp_path):
    """Forward, pictures, state, what is sampled from the same start, and commands, of two requests in one window."""
    export = write_export(tmp_path / "export")
    found = original.check(export, tmp_path, interpreter(tmp_path, f'cp "{ANSWERS}" "$work/found.npz"'), 1e-4)
    assert found["passed"] and found["left"] == {} and found["otherwise"] == []
    parts = ("canvas", "state", "video", "actions", "commands")
    assert found["entries"].keys() == {"forward/video", "forward/action",
                                       *(f"request{i}/{part}" for i in (0, 1) for part in parts)}
    sizes = {name: size for name, size in found["entries"].items() if not name.endswith("canvas")}
    assert max(sizes.values()) < 5e-5 and found["entries"]["request1/canvas"] < 0.6


def spoilt(tmp_path, **changes) -> str:
    with np.load(ANSWERS) as file:
        np.savez(tmp_path / "spoilt.npz", **{name: file[name] for name in file.files} | changes)
    return interpreter(tmp_path, f'cp "{tmp_path}/spoilt.npz" "$work/found.npz"')


def test_what_is_left_out_or_differs_does_not_pass(tmp_path):
    export, name = write_export(tmp_path / "export"), "action_head.model.img_emb.proj.0.weight"
    found = original.check(export, tmp_path, spoilt(tmp_path, missing=np.array([name])), 1e-4)
    assert found["left"] == {"missing": [name]} and found["above"] == [] and not found["passed"]
    other = np.full((1, 24, 32), 0.5, np.float32)
    found = original.check(export, tmp_path, spoilt(tmp_path, **{"forward/action": np.repeat(other, 4, 1)}), 1e-4)
    assert found["above"] == ["forward/action"] and not found["passed"]


def test_another_prompt_is_told(tmp_path):
    texts = np.array(["do it: Pick up the cup"])
    found = original.check(write_export(tmp_path / "export"), tmp_path,
                           spoilt(tmp_path, **{"request0/texts/1": texts}), 1e-4)
    assert found["passed"] and found["otherwise"][0].startswith(
        """it asks 'do it: Pick up the cup', we ask "A multi-view video""")


def test_its_last_words_are_told(tmp_path):
    export = write_export(tmp_path / "export")
    with pytest.raises(ValueError, match="ended with 3: RuntimeError: no such frames"):
        original.check(export, tmp_path, interpreter(tmp_path, "echo 'RuntimeError: no such frames' >&2; exit 3"), 1e-4)
    with pytest.raises(ValueError, match=r"ended with 1: ModuleNotFoundError: No module named 'groot'"):
        original.check(export, tmp_path / "no_checkout", sys.executable, 1e-4)


def test_a_robot_that_it_does_not_serve_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the original serves agibot, oxe_droid, .*, not 'aloha'"):
        original.check(write_export(tmp_path / "aloha", robot="aloha"), tmp_path, sys.executable, 1e-4)


if __name__ == "__main__":
    write_export(Path(sys.argv[1]))
