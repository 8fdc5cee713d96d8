"""Compares a model with numbers measured on the reference implementation.

    python -m launch.parity --golden=tests/goldens/FILE.npz [--tolerance=1e-4] [--runtime=torch]

Recognises the family, builds the model at the golden's sizes, imports its weights and computes everything else that
the file holds (parity.py in the family's folder says what). Prints one JSON object: per entry and over all the largest
absolute difference (of gradient norms and timesteps relative to the expected value). Exits 1 above the tolerance.
"""

import json
import sys

import jax
import numpy as np
from absl import flags

from launch.setup import flags as launch_flags
from world_model.families import all_families
from world_model.families.base.golden import GoldenFile, read_config
from world_model.weights.comparison import Difference, first_above, max_difference


def read(path: str) -> GoldenFile:
    """Raises ValueError where no family is recognised."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    sizes = read_config(arrays)
    sizes = sizes.get("model", sizes)
    readers = [family.part("golden", "launch.parity") for family in all_families() if family.golden]
    for reader in readers:
        if reader.MARK in sizes:
            return reader(arrays)
    raise ValueError(f"cfg_json has no model of a known family: none of {sorted(reader.MARK for reader in readers)} "
                     f"among {sorted(sizes)}")


def compare(golden: GoldenFile, adapter) -> dict[str, Difference]:
    """entry -> difference, in the order of computation.

    Raises ValueError where the file holds an entry that nothing here computes, or one of another shape.
    """
    differences = {}
    for section, run in golden.SECTIONS.items():
        if any(key.startswith(f"{section}/") for key in golden.expected):
            found = {key: x for key, x in run(golden, adapter) if key in golden.expected}
            differences |= {key: max_difference(key, golden.expected[key], x, bool(golden.RELATIVE.match(key)))
                            for key, x in found.items()}
    unknown = sorted(set(golden.expected) - set(differences))
    if unknown:
        raise ValueError(f"golden holds entries that this command does not know: {unknown}")
    return differences


def main(_) -> None:
    args = flags.FLAGS
    jax.config.update("jax_disable_most_optimizations", True)  # small models: compiling is all the time it takes
    try:
        golden = read(args.golden)
        with jax.default_matmul_precision("highest"):
            differences = compare(golden, golden.adapter(args.runtime))
    except (ValueError, OSError) as error:
        sys.exit(f"--golden={args.golden}: {error}")
    sizes = {entry: d.size for entry, d in differences.items()}
    print(json.dumps(sizes | {"max": max(sizes.values())}, indent=1))
    sys.exit(first_above(differences, args.tolerance))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    flags.DEFINE_string("golden", None, "npz of reference numbers")
    flags.DEFINE_float("tolerance", 1e-4, "largest difference that passes")
    flags.DEFINE_enum("runtime", "jax", ["jax", "torch"], "implementation to compare")
    flags.mark_flag_as_required("golden")
    launch_flags.run(main)
