"""Takes the weights away: a directory that PyTorch reads, checked against the JAX model before it appears.

    python -m launch.export --workdir=runs/quickstart --out=DIR [--format=wan] [--step=1000] [--dtype=bfloat16]
    python -m launch.export --workdir=DIR --out=DIR --format=lerobot [--license=apache-2.0]    # for LeRobot's commands
    python -m launch.export --out=DIR --check=original --path=CHECKOUT [--python=PYTHON]

OUT holds weights in a layout of the model's family (the first of its `exports` unless --format says another),
statistics.json with the normalisation, provenance.json (config, code version, hash of the weights that training began
with), encoders/ (launch/exporting/exported.py) and parity.json: all that launch.serve --export needs. Where a PyTorch
runtime reads the layout, parity is the largest difference between it and the JAX model, in float32, of what the family
computes with fixed inputs (families/*/parity/export_check.py); for other layouts, of the weights read back. Above the
tolerance the command exits 1, says where the two first differ, and leaves OUT.rejected.

A large model's weights are read and written one array at a time; --by_tensor compares them so too, and runs no two
models, where memory does not hold the model twice.

Adapters are written beside their base as peft names them, alone with --format=adapters, or into it with --merge_lora.
--check=original --path=CHECKOUT runs what OUT holds (with --workdir, once it is written) in somebody's checkout of the
original project, by its own classes and policy and by --python, an interpreter with that project's packages: a forward
and requests are compared, and the command exits 1 where they differ or a tensor was left out (docs/weights.md).

With --dtype=bfloat16 everything up to the file is float32, the cast is the last thing that happens to a weight, what
it changes is reported as "cast", beside the parity, which is between two models of the same rounded weights.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from absl import flags, logging

from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.robots.robot import Robot
from data_pipelines.statistics.stored import save_statistics, statistics_hash
from launch.exporting import exported, lerobot, original
from launch.serving.servable import choose_robot
from launch.setup import flags as launch_flags
from launch.setup import provenance
from launch.setup.experiment import MACHINE_KEYS, Experiment
from launch.setup.restore import Restored, restore
from world_model.families import all_families
from world_model.families.base.export import READ_BACK, ExportFormat, Trained
from world_model.families.base.family import Family
from world_model.layers import lora
from world_model.training.checkpoint import CheckpointError
from world_model.weights import safetensors_io
from world_model.weights.comparison import first_above


class ParityError(RuntimeError):
    """The exported weights do not compute what the JAX model computes."""


def export(restored: Restored, out: Path | str, tolerance: float = 1e-4,
           shard_bytes: int = safetensors_io.SHARD_BYTES, format_name: str | None = None,
           dtype: str = "float32", robot: Robot | None = None, license: str | None = None,
           by_tensor: bool = False) -> dict:
    """Writes `out` and returns its parity report. format_name: default the family's own; dtype: of the file; robot,
    license: of LeRobot's layout; by_tensor: compare tensors one by one instead of two models.

    Raises ParityError above the tolerance, FileExistsError where `out` is not empty.
    """
    for_lerobot, out = format_name == lerobot.FORMAT, Path(out)
    written = format_of(restored.experiment.family, None if for_lerobot else format_name)
    robot = choose_robot(restored, None, None) if for_lerobot and robot is None else robot
    with safetensors_io.atomic_directory(out) as folder:
        partial = folder / lerobot.INSIDE if for_lerobot else folder
        partial.mkdir(exist_ok=True)
        save_statistics(restored.statistics, f"{partial}/statistics.json")
        write_provenance(partial, restored, dtype)
        exported.write_encoders(partial, restored)
        model = trained(restored)._replace(by_tensor=by_tensor)
        found = written.write_and_compare(partial, model, np.dtype(dtype), shard_bytes)
        problem = first_above(found.parity, tolerance)
        parity, cast, low = ({entry: d.size for entry, d in part.items()} for part in found[:3])
        report = {"step": restored.step, "tolerance": tolerance,
                  "compared_with": READ_BACK if by_tensor else written.compared_with,
                  "passed": problem is None and not found.unloadable, "problem": problem, "max": max(parity.values()),
                  "unloadable": list(found.unloadable), "otherwise": list(found.deviations),
                  "entries": parity, "dtype": dtype, "cast": cast, "bfloat16": low}
        (partial / "parity.json").write_text(json.dumps(report, indent=1) + "\n")
        if problem:
            rejected = out.with_name(f"{out.name}.rejected")
            shutil.rmtree(rejected, ignore_errors=True)
            os.replace(folder, rejected)
            raise ParityError(f"{problem}; left as {rejected}")
        if for_lerobot:
            lerobot.pack(folder, restored, robot, license)
    return report


def format_of(family: Family, name: str | None) -> ExportFormat:
    """Raises MissingPart where the family is written nowhere, ValueError where it has no such format, naming those it
    has."""
    formats = family.part("exports", "launch.export")
    if name not in (None, *formats):
        raise ValueError(f"--format={name}: a model of family {family.name} can be written as {sorted(formats)}")
    return formats[name] if name else next(iter(formats.values()))


def trained(restored: Restored) -> Trained:
    """What export formats take: the model, its weights, and what goes with them."""
    experiment = restored.experiment
    robots = {name: get_embodiment(one["embodiment"]) for name, one in restored.statistics.items() if one["action"]}
    settings = {name: value for name, value in experiment.sampler_settings().items() if name not in MACHINE_KEYS}
    config = restored.config
    return Trained(experiment.model, restored.params, settings, restored.statistics, robots,
                   config.optimizer.trainable, restored.step, config.data.crop, config.encoders.to_dict(),
                   config.evaluate.get("unconditional", ""))


def merge_adapters(restored: Restored) -> Restored:
    """Returns the model with each adapter added to its kernel. Raises ValueError where there are none."""
    spec, config = restored.experiment.model.spec, restored.config.copy_and_resolve_references()
    if not getattr(spec, "lora_rank", 0):
        raise ValueError("--merge_lora: the model has no adapters (model.lora_rank = 0)")
    config.model.lora_rank = 0
    return dataclasses.replace(restored, experiment=Experiment(config),
                               params=lora.merge(restored.params, spec.lora_alpha))


def write_provenance(directory: Path, restored: Restored, dtype: str) -> None:
    """Writes what the weights are and come from."""
    found = {"family": restored.config.model.family, "step": restored.step, "weights": restored.weights,
             "dtype": dtype, "base": restored.base,
             "statistics_hash": statistics_hash(restored.statistics), "code_version": provenance.code_version(),
             "config": provenance.as_json(restored.config)}
    (directory / "provenance.json").write_text(json.dumps(found, indent=1) + "\n")


def main(_) -> None:
    args = flags.FLAGS
    if args.workdir or not args.check:
        write(args)
    if args.check:
        found = original.check(args.out, args.path, args.python, args.tolerance, args.embodiment, args.dataset)
        print(json.dumps(found, indent=1))
        sys.exit(not found["passed"])


def write(args) -> None:
    """Writes the export that the flags ask for, and says how it went."""
    if not args.workdir:
        raise ValueError("--workdir is needed: the run to export")
    restored = restore(args.workdir, args.step)
    restored = merge_adapters(restored) if args.merge_lora else restored
    robot = None
    if args.format == lerobot.FORMAT:
        restored.experiment.family.part("torch_policy", f"launch.export --format={lerobot.FORMAT}")
        robot = choose_robot(restored, args.embodiment, args.dataset)
    report = export(restored, args.out, args.tolerance, format_name=args.format, dtype=args.dtype, robot=robot,
                    license=args.license, by_tensor=args.by_tensor)
    if args.format != lerobot.FORMAT:  # whose plug-in runs our own runtime
        for sentence in report["unloadable"]:
            logging.warning("the program whose layout this is cannot load the whole: %s", sentence)
        for sentence in report["otherwise"]:
            logging.warning("%s", sentence)
    rounding = {name: max(report[name].values()) for name in ("cast", "bfloat16") if report[name]}
    print(json.dumps({"out": args.out, "step": report["step"], "weights": restored.weights,
                      "max": report["max"], **rounding}))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    flags.DEFINE_string("workdir", None, "directory of the training run")
    flags.DEFINE_enum("format", None, sorted({lerobot.FORMAT, *(name for family in all_families()
                                                                for name in family.exports)}),
                      "whose names and layout; default: the model's family")
    flags.DEFINE_string("embodiment", None, "robot that LeRobot, or the original, drives, where the run knows several")
    flags.DEFINE_string("dataset", None, "whose statistics these go by, where several are of that robot")
    flags.DEFINE_string("license", None, "of the weights, as the Hub spells it, for LeRobot's model card")
    flags.DEFINE_bool("merge_lora", False, "add adapters to their weights first; default: write both")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the written weights")
    flags.DEFINE_bool("by_tensor", False, "compare the written tensors one by one, and run no two models: for one "
                                          "that memory does not hold twice")
    flags.DEFINE_string("out", None, "directory to make; must not exist, or be empty")
    flags.DEFINE_integer("step", None, "checkpoint step; default: the newest")
    flags.DEFINE_float("tolerance", 1e-4, "largest difference that passes")
    flags.DEFINE_enum("check", None, ["original"], "run the export where it is meant for")
    flags.DEFINE_string("path", "", "checkout of the original project, for --check=original")
    flags.DEFINE_string("python", sys.executable, "interpreter with that project's packages")
    flags.mark_flag_as_required("out")
    launch_flags.run(main, CheckpointError, ParityError)
