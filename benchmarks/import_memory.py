"""Peak memory of launch.import_weights on tensors of the 14B model's full size, in a process of its own.

    python -m benchmarks.import_memory [--layers=4] [--dir=/tmp/import_memory]

It writes a checkpoint in the original Wan's layout with so many of 40 layers (BF16, one shard; the file has no data,
reads as zeros and takes no room), imports it and prints one JSON line: the largest shard, the peak resident memory of
the importing process with everything that it maps, their ratio (to stay below 1.3), and seconds.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from configs import dreamzero_14b
from launch.setup.experiment import Experiment
from world_model.families.dreamzero.weights.formats import IMPORTS
from world_model.families.dreamzero.weights.names import is_action_part
from world_model.weights import names


def synthesize(folder: Path, layers: int) -> int:
    """Writes the shard; returns its bytes."""
    config = dreamzero_14b.get_config()
    config.model.num_layers = layers
    model, fmt = Experiment(config).model, IMPORTS["wan"]
    video = {name: x for name, x in model.shapes.items() if not is_action_part(name)}
    published = names.published_shapes(video, model.spec.head_dim, fmt.table)
    folder.mkdir(parents=True)
    path = folder / f"{fmt.stem}.safetensors"
    headers_only(path, {name: x.shape for name, x in published.items()})
    return path.stat().st_size


def headers_only(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Writes a safetensors file of BF16 zeros that takes no room on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def main(_) -> None:
    """Runs the command."""
    directory, layers = Path(flags.FLAGS.dir), flags.FLAGS.layers
    shutil.rmtree(directory, ignore_errors=True)
    shard = synthesize(directory / "source", layers)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "launch.import_weights", "--format=wan", f"--source={directory / 'source'}",
                    "--config=configs/dreamzero_14b.py", f"--config.model.num_layers={layers}",
                    f"--out={directory / 'out'}"], check=True, stdout=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"layers": layers, "largest_shard_gb": round(shard / 1e9, 3), "peak_rss_gb": round(peak / 1e9, 3),
                      "ratio": round(peak / shard, 3), "seconds": round(time.monotonic() - began, 1)}))
    shutil.rmtree(directory)


if __name__ == "__main__":
    flags.DEFINE_integer("layers", 4, "of the 40; at least 2")
    flags.DEFINE_string("dir", "/tmp/import_memory", "made and removed")
    app.run(main)
