"""The toy's weights as safetensors, under their own names."""

import numpy as np

from world_model.families.base.export import READ_BACK, Comparison, ExportFormat, compare_cast
from world_model.weights import safetensors_io


def write(directory, trained, dtype: np.dtype, shard_bytes: int) -> Comparison:
    """Writes every parameter, and compares what is read back."""
    tensors = ((name, np.asarray(x).astype(dtype)) for name, x in sorted(trained.params.items()))
    safetensors_io.write(directory, tensors, shard_bytes)
    found = {name: np.asarray(x, np.float32) for name, x in safetensors_io.Weights(directory).items()}
    return Comparison(*compare_cast(dict, trained, dtype, found)[:2])


WRITTEN = ExportFormat(write, READ_BACK)
