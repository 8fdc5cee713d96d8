"""The released layouts of LingBot-VLA's two versions, in which their networks are written."""

import functools
from pathlib import Path

import numpy as np

from world_model.families.base.export import RUNTIME, Comparison, ExportFormat, Trained, check
from world_model.families.lingbot_vla.parity.export_check import jax_outputs, torch_outputs
from world_model.families.lingbot_vla.weights import norm_stats, released_format
from world_model.families.lingbot_vla.weights.formats import IMPORTS
from world_model.families.lingbot_vla.weights.released_format import VERSIONS


def write_released(directory: Path, trained: Trained, dtype: np.dtype, shard_bytes: int, *, format_name: str
                   ) -> Comparison:
    """Chunks of actions by the JAX model, against the PyTorch runtime on what was written."""
    spec = trained.model.spec
    version = VERSIONS[spec.vision]
    if version.format_name != format_name:
        raise ValueError(f"--format={format_name}: the model is of LingBot-VLA version {version.number} "
                         f"(model.vision = {spec.vision!r}); say --format={version.format_name}")
    if spec.lora_rank:
        raise ValueError(f"--format={format_name}: this layout has no adapters; say --merge_lora")
    released_format.write(directory, spec, trained.params, step=trained.step, rollout=trained.settings,
                          robots=trained.robots, statistics=trained.statistics, dtype=dtype, shard_bytes=shard_bytes)
    deviations = (*released_format.other_sizes(spec), *(
        sentence for dataset, robot in trained.robots.items()
        for sentence in norm_stats.deviations(dataset, robot, version.number)))
    return check(directory, trained, dtype, IMPORTS[format_name], jax_outputs, torch_outputs)._replace(
        deviations=deviations)


EXPORTS = {name: ExportFormat(functools.partial(write_released, format_name=name), RUNTIME)
           for name in (version.format_name for version in VERSIONS.values())}
