"""Takes the weights away: a directory that PyTorch reads, checked against the JAX model before it appears.

    python -m launch.export --workdir=runs/quickstart --format=dreamzero --out=DIR [--step=1000] [--dtype=bfloat16]

OUT holds weights and config.json in a published layout (world_model/families/*/*_format.py), statistics.json and
experiment_cfg/ with the normalisation, provenance.json (config, code version, hash of the weights that training began
with), encoders/ (launch/exporting/exported.py) and parity.json: all that launch.serve --export needs. For dreamzero
parity is the largest difference of the JAX model and the PyTorch runtime after each transformer block and of every
block's denoised latents and actions, in float32; for lingbot_va, of every chunk's; for the others, of the weights read
back. Above the tolerance the command exits 1, says where the two first differ, and leaves OUT.rejected.

Adapters are written beside their base as peft names them, alone with --format=adapters, or into it with --merge_lora.
With --dtype=bfloat16 everything up to the file is float32, the cast is the last thing that happens to a weight, what
it changes is reported as "cast", beside the parity, which is between two models of the same rounded weights.
"""

import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.statistics import statistics_hash
from launch.exporting import exported
from launch.setup import build, provenance
from launch.setup import flags as launch_flags
from world_model.families import published_formats
from world_model.families.dreamzero import experiment as reference_experiment
from world_model.families.dreamzero import reference_format as dreamzero_format
from world_model.families.dreamzero import video_formats as wan_format
from world_model.families.dreamzero.export_check import bfloat16_outputs, fixed_inputs, jax_outputs, torch_outputs
from world_model.families.dreamzero.names import DREAMZERO, is_action_part
from world_model.families.lingbot_va import export_check as export_lingbot_va
from world_model.families.lingbot_va import released_format as lingbot_va_format
from world_model.layers import lora
from world_model.layers.lora import ADAPTER
from world_model.training.checkpoint import CheckpointError
from world_model.training.state import trained_names
from world_model.weights import conversion, names, safetensors_io
from world_model.weights.comparison import Difference, first_above, max_difference


class ParityError(RuntimeError):
    """The exported weights do not compute what the JAX model computes."""


def export(restored: build.Restored, out: Path | str, tolerance: float = 1e-4,
           shard_bytes: int = safetensors_io.SHARD_BYTES, format_name: str | None = None,
           dtype: str = "float32") -> dict:
    """Writes `out` and returns its parity report. format_name: default the family's own; dtype: of the file.

    Raises ParityError above the tolerance, FileExistsError where `out` is not empty.
    """
    written, out = format_of(restored.config.model.family, format_name), Path(out)
    with safetensors_io.atomic_directory(out) as partial:
        write_statistics(partial, restored)
        write_provenance(partial, restored, dtype)
        exported.write_encoders(partial, restored)
        differences, cast, low = written.write_and_compare(partial, restored, np.dtype(dtype), shard_bytes)
        problem = first_above(differences, tolerance)
        sizes = lambda found: {entry: d.size for entry, d in found.items()}
        report = {"step": restored.step, "compared_with": written.compared_with, "tolerance": tolerance,
                  "passed": problem is None, "problem": problem, "max": max(sizes(differences).values()),
                  "entries": sizes(differences), "dtype": dtype, "cast": sizes(cast), "bfloat16": sizes(low)}
        (partial / "parity.json").write_text(json.dumps(report, indent=1) + "\n")
        if problem:
            rejected = out.with_name(f"{out.name}.rejected")
            shutil.rmtree(rejected, ignore_errors=True)
            os.replace(partial, rejected)
            raise ParityError(f"{problem}; left as {rejected}")
    return report


class Comparison(NamedTuple):
    """What was written against what was meant."""

    parity: dict[str, Difference]  # of the same weights, held to the tolerance
    cast: dict[str, Difference]  # what the file's dtype changes
    bfloat16: Mapping[str, Difference] = MappingProxyType({})  # of computing in it, where something computes


class Format(NamedTuple):
    """How a family's weights are written."""

    family: str
    write_and_compare: Callable[[Path, build.Restored, np.dtype, int], Comparison]
    compared_with: str  # what the differences are differences from


def rounded(params: Mapping[str, jax.Array], dtype: np.dtype) -> Mapping[str, np.ndarray]:
    """float32 parameters as a file of that dtype holds them."""
    if dtype == np.float32:
        return params
    return {name: np.asarray(x).astype(dtype).astype(np.float32) for name, x in params.items()}


def write_dreamzero(directory: Path, restored: build.Restored, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """Of the JAX model and the PyTorch runtime on what was written."""
    write_conf(directory, restored, dtype)
    settings = build.rollout_settings(restored.config)
    rollout = restored.family.rollout(**settings)
    dreamzero_format.write(directory, restored.family.spec, restored.params, rollout=settings, dtype=dtype,
                           shard_bytes=shard_bytes)
    inputs, params = fixed_inputs(rollout), rounded(restored.params, dtype)
    ours = jax_outputs(rollout, params, inputs)
    parity = compare(ours, torch_outputs(directory, inputs))
    low = bfloat16_outputs(directory, inputs)
    return Comparison(parity, {} if params is restored.params else compare(
        jax_outputs(rollout, restored.params, inputs), ours), compare({entry: ours[entry] for entry in low}, low))


def write_video_model(directory: Path, restored: build.Restored, dtype: np.dtype, shard_bytes: int, *,
                      format_name: str) -> Comparison:
    """Of our parameters and what launch.import_weights reads back."""
    spec, params = restored.family.spec, restored.params
    if spec.lora_rank:
        raise ValueError(f"--format={format_name}: this layout has no adapters; say --merge_lora")
    wan_format.write(directory, format_name, spec, params, dtype=dtype, shard_bytes=shard_bytes)
    found = conversion.read(published_formats()[format_name].open(directory), params, spec)
    written = rounded(params, dtype)
    return Comparison(compare(written, found), {} if written is params else compare(params, written))


def write_adapters(directory: Path, restored: build.Restored, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """Of what was trained beside a frozen base and what is read back."""
    spec, params = restored.family.spec, restored.params
    if not spec.lora_rank:
        raise ValueError("--format=adapters: the model has none (model.lora_rank = 0)")
    trained = trained_names(params, restored.config.optimizer.trainable)
    if changed := [name for name in trained if not ADAPTER.search(name) and not is_action_part(name)]:
        raise ValueError(f"--format=adapters: {changed[0]} of the base was trained too (optimizer.trainable = "
                         f"{restored.config.optimizer.trainable!r}); export the whole")
    write_conf(directory, restored, dtype, adapters_only=True)
    dreamzero_format.write_adapters(directory, spec, params, rollout=build.rollout_settings(restored.config),
                                    dtype=dtype, shard_bytes=shard_bytes)
    written = dict(names.to_published(rounded(params, dtype), spec.head_dim, DREAMZERO))
    found = {name: np.asarray(x, np.float32) for name, x in opened_tensors(directory).items()}
    parity = compare({name: written[name] for name in found}, found)
    return Comparison(parity, {})


def opened_tensors(directory: Path) -> dict[str, np.ndarray]:
    """What a dreamzero directory holds, by the network's names."""
    source = published_formats()["dreamzero"].open(directory)
    return {name: source[name] for name in source.where}


def merged(restored: build.Restored) -> build.Restored:
    """The same model without adapters: each added to its kernel. Raises ValueError where there are none."""
    spec, config = restored.family.spec, restored.config.copy_and_resolve_references()
    if not getattr(spec, "lora_rank", 0):
        raise ValueError("--merge_lora: the model has no adapters (model.lora_rank = 0)")
    config.model.lora_rank = 0
    return dataclasses.replace(restored, config=config, family=build.model(config),
                               params=lora.merge(restored.params, spec.lora_alpha))


def write_lingbot_va(directory: Path, restored: build.Restored, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """As `write_dreamzero`: every chunk's latents and actions."""
    if dtype != np.float32:
        raise ValueError(f"--dtype={dtype.name}: lingbot_va is written in float32")
    settings = build.rollout_settings(restored.config)
    rollout = restored.family.rollout(**settings)
    lingbot_va_format.write(directory, restored.family.spec, restored.params, rollout=settings, shard_bytes=shard_bytes)
    return Comparison(compare(export_lingbot_va.jax_outputs(rollout, restored.params),
                              export_lingbot_va.torch_outputs(rollout, directory)), {})


READ_BACK = "parameters read back"
FORMATS = {  # a family's first is its own
    "dreamzero": Format("dreamzero", write_dreamzero, "PyTorch runtime"),
    **{name: Format("dreamzero", functools.partial(write_video_model, format_name=name), READ_BACK)
       for name in ("wan", "diffusers")},
    "adapters": Format("dreamzero", write_adapters, READ_BACK),
    **{family: Format(family, write_lingbot_va, "PyTorch runtime") for family in lingbot_va_format.VARIANTS},
}


def format_of(family: str, name: str | None) -> Format:
    """Raises ValueError where the family has no such format, naming those it has."""
    there = {key: found for key, found in FORMATS.items() if found.family == family}
    if not there:
        raise ValueError(f"family {family!r} has no released layout to export to; there are {sorted(FORMATS)}")
    if name not in (None, *there):
        raise ValueError(f"--format={name}: a model of family {family} can be written as {sorted(there)}")
    return there[name] if name else next(iter(there.values()))


def compare(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    """Entry by entry."""
    return {entry: max_difference(entry, x, found[entry]) for entry, x in expected.items()}


def write_provenance(directory: Path, restored: build.Restored, dtype: str) -> None:
    """What the weights are and come from."""
    found = {"family": restored.config.model.family, "step": restored.step, "dtype": dtype, "base": restored.base,
             "statistics_hash": statistics_hash(restored.statistics), "code_version": provenance.code_version(),
             "config": provenance.as_json(restored.config)}
    (directory / "provenance.json").write_text(json.dumps(found, indent=1) + "\n")


def write_statistics(directory: Path, restored: build.Restored) -> None:
    """statistics.json as trained, and the same in the reference's form: experiment_cfg/metadata.json."""
    (directory / "statistics.json").write_text(json.dumps(restored.statistics, indent=1, sort_keys=True) + "\n")
    stride, metadata = restored.family.spec.layout.frame_stride, {}
    for name, one in robots(restored).items():  # a second dataset of one robot goes by its own name
        entry = reference_experiment.metadata(get_embodiment(one["embodiment"]), one, restored.config.layout, stride)
        metadata[name if (tag := entry["embodiment_tag"]) in metadata else tag] = entry
    (directory / "experiment_cfg").mkdir()
    (directory / "experiment_cfg" / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")


def write_conf(directory: Path, restored: build.Restored, dtype: np.dtype, *, adapters_only: bool = False) -> None:
    """experiment_cfg/conf.yaml, which DreamZero's server reads."""
    embodiments = [get_embodiment(name) for name in sorted({one["embodiment"] for one in robots(restored).values()})]
    settings = reference_experiment.conf(embodiments, restored.family.spec, restored.config.layout, dtype.name)
    reference_experiment.write_conf(directory / "experiment_cfg" / "conf.yaml",
                                    settings | {"save_lora_only": adapters_only})


def robots(restored: build.Restored) -> dict[str, dict]:
    """Statistics of the datasets that have actions."""
    return {name: one for name, one in restored.statistics.items() if one["action"]}


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    try:
        restored = build.restore(args.workdir, args.step)
        restored = merged(restored) if args.merge_lora else restored
        report = export(restored, args.out, args.tolerance, format_name=args.format, dtype=args.dtype)
    except (ParityError, CheckpointError, safetensors_io.WeightsError, ValueError, OSError) as error:
        sys.exit(f"export: {error}")
    told = {name: max(report[name].values()) for name in ("cast", "bfloat16") if report[name]}
    print(json.dumps({"out": args.out, "step": report["step"], "max": report["max"], **told}))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    flags.DEFINE_string("workdir", None, "directory of the training run")
    flags.DEFINE_enum("format", None, sorted(FORMATS), "whose names and layout; default: the model's family")
    flags.DEFINE_bool("merge_lora", False, "add adapters to their weights first; default: write both")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the written weights")
    flags.DEFINE_string("out", None, "directory to make; must not exist, or be empty")
    flags.DEFINE_integer("step", None, "checkpoint step; default: the newest")
    flags.DEFINE_float("tolerance", 1e-4, "largest difference that passes")
    flags.mark_flags_as_required(["workdir", "out"])
    launch_flags.run(main)
