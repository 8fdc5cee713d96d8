"""The layouts in which a DreamZero is written: its own, the video model alone, adapters alone."""

import functools
import json
import re
from pathlib import Path

import numpy as np

from world_model.families.base.export import (
    READ_BACK,
    RUNTIME,
    Comparison,
    ExportFormat,
    Trained,
    check,
    compare,
    read_back,
    rounded,
)
from world_model.families.dreamzero.parity.export_check import jax_outputs, torch_outputs
from world_model.families.dreamzero.weights import experiment, reference_format, video_formats
from world_model.families.dreamzero.weights.formats import IMPORTS
from world_model.families.dreamzero.weights.names import DREAMZERO, is_action_part
from world_model.layers.lora import ADAPTER
from world_model.weights import names


def write_whole(directory: Path, trained: Trained, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """DreamZero's own layout; the JAX model against the PyTorch runtime on what was written."""
    write_experiment(directory, trained, dtype)
    reference_format.write(directory, trained.model.spec, trained.params, rollout=trained.settings,
                           encoders=trained.encoders, dtype=dtype, shard_bytes=shard_bytes)
    unloadable, deviations = _original_limits(trained)
    return check(directory, trained, dtype, IMPORTS["dreamzero"], jax_outputs, torch_outputs)._replace(
        unloadable=unloadable, deviations=deviations)


def write_video_model(directory: Path, trained: Trained, dtype: np.dtype, shard_bytes: int, *,
                      format_name: str) -> Comparison:
    """The video model's layout, actions beside it; parameters against what launch.import_weights reads back."""
    spec, params = trained.model.spec, trained.params
    if spec.lora_rank:
        raise ValueError(f"--format={format_name}: this layout has no adapters; say --merge_lora")
    write_experiment(directory, trained)
    video_formats.write(directory, format_name, spec, params, dtype=dtype, shard_bytes=shard_bytes)
    return read_back(directory, trained, dtype, IMPORTS[format_name])._replace(
        unloadable=tuple(video_formats.unloadable(format_name, spec)))


def write_adapters(directory: Path, trained: Trained, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """What was trained beside a frozen base, against what is read back."""
    spec, params = trained.model.spec, trained.params
    if not spec.lora_rank:
        raise ValueError("--format=adapters: the model has none (model.lora_rank = 0)")
    changed = [name for name in params if re.search(trained.trainable, name)
               and not ADAPTER.search(name) and not is_action_part(name)]
    if changed:
        raise ValueError(f"--format=adapters: {changed[0]} of the base was trained too (optimizer.trainable = "
                         f"{trained.trainable!r}); export the whole")
    write_experiment(directory, trained, dtype, adapters_only=True)
    reference_format.write_adapters(directory, spec, params, rollout=trained.settings, encoders=trained.encoders,
                                    dtype=dtype, shard_bytes=shard_bytes)
    written = dict(names.to_published(rounded(params, dtype), spec.head_dim, DREAMZERO))
    source = IMPORTS["dreamzero"].open(directory)
    found = {name: np.asarray(source[name], np.float32) for name in source.where}
    unloadable, deviations = _original_limits(trained)
    if not spec.image_dim:
        unloadable += ("adapters come without the image branch of zeros that it needs beside them; say --merge_lora",)
    return Comparison(compare({name: written[name] for name in found}, found), unloadable=unloadable,
                      deviations=deviations)


def _original_limits(trained: Trained) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`Comparison.unloadable` and `Comparison.deviations`."""
    robots = {robot.name: robot for robot in trained.robots.values()}
    spec = trained.model.spec
    return tuple(reference_format.unloadable(spec)), (
        *experiment.differences(list(robots.values()), trained.settings, trained.unconditional),
        *reference_format.other_encoders(spec, trained.encoders))


def write_experiment(directory: Path, trained: Trained, dtype: np.dtype | None = None, *, adapters_only: bool = False
                     ) -> None:
    """experiment_cfg/metadata.json and, where a dtype is given, conf.yaml, which DreamZero's server reads."""
    folder, spec = directory / "experiment_cfg", trained.model.spec
    metadata: dict[str, dict] = {}
    for name, robot in trained.robots.items():  # a second dataset of one robot goes by its own name
        entry = experiment.metadata(robot, trained.statistics[name], spec.layout)
        metadata[name if (tag := entry["embodiment_tag"]) in metadata else tag] = entry
    folder.mkdir()
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    if dtype is not None:
        robots = {robot.name: robot for robot in trained.robots.values()}
        tokenizer = trained.encoders.get("tokenizer", "")
        settings = experiment.conf([robots[name] for name in sorted(robots)], spec, dtype.name, trained.crop,
                                   str(Path(tokenizer).absolute().parent) if tokenizer else "")
        experiment.write_conf(folder / "conf.yaml", settings | {"save_lora_only": adapters_only})


EXPORTS = {  # the first is its own
    "dreamzero": ExportFormat(write_whole, RUNTIME),
    **{name: ExportFormat(functools.partial(write_video_model, format_name=name), READ_BACK)
       for name in ("wan", "diffusers")},
    "adapters": ExportFormat(write_adapters, READ_BACK),
}
