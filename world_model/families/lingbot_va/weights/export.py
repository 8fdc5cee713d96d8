"""The released layout of LingBot-VA, in which both of its networks are written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from world_model.families.base.export import RUNTIME, Comparison, ExportFormat, Trained, check
from world_model.families.lingbot_va.layout import LingBotVASpec
from world_model.families.lingbot_va.parity.export_check import jax_outputs, torch_outputs
from world_model.families.lingbot_va.weights import released_format
from world_model.families.lingbot_va.weights.formats import IMPORTS


def write_released(directory: Path, trained: Trained, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """Every chunk's latents and actions by the JAX model, against the PyTorch runtime on what was written."""
    released_format.write(directory, trained.model.spec, trained.params, rollout=trained.settings, dtype=dtype,
                          shard_bytes=shard_bytes)
    found = check(directory, trained, dtype, IMPORTS[trained.model.family.name], jax_outputs, torch_outputs)
    return found._replace(deviations=tuple(where_it_differs(trained.model.spec)))


def where_it_differs(spec: LingBotVASpec) -> Iterator[str]:
    """Sentences on what the original does otherwise with these sizes."""
    third = spec.head_dim // 3
    if third % 2:
        yield (f"the original cannot run heads {spec.head_dim} wide: it turns rows and columns on a third of a head "
               f"each, {third} values, in pairs; choose model.dim / model.num_heads with an even third, such as 128")


WRITTEN = ExportFormat(write_released, RUNTIME)
