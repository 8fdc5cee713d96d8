"""The toy's weights as safetensors under their own names, written and read."""

import numpy as np

from toy_family.network import Toy
from toy_family.spec import CONFIG, ToySpec
from world_model import functional
from world_model.batch import Layout
from world_model.families.base.export import READ_BACK, Comparison, ExportFormat, read_back
from world_model.weights import safetensors_io
from world_model.weights.formats import PublishedFormat
from world_model.weights.names import NameTable


def write(directory, trained, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """Writes every parameter, and compares what is read back."""
    tensors = ((name, np.asarray(x).astype(dtype)) for name, x in trained.params.items())
    safetensors_io.write(directory, tensors, shard_bytes)
    return read_back(directory, trained, dtype, READ)


WRITTEN = ExportFormat(write, READ_BACK)
_NAMES = functional.shapes(Toy, ToySpec(layout=Layout(**CONFIG["layout"], temporal_stride=1), **CONFIG["model"]))
READ = PublishedFormat("model", ("",), ("",), NameTable(tuple((name, name, "array") for name in _NAMES)))
