"""Makes one file of a denoising step that PyTorch runs without this package, from an export.

    python -m launch.export_step --export=DIR --out=step.pt2 [--block=1] [--dtype=bfloat16] [--batch=2]

The file holds the weights, and for autoregressive block `--block` the mask and positions as constants; a rollout needs
one per block. A batch of 2 is both branches of guidance. The family's `torch_step` says what the arguments are.
"""

from pathlib import Path

from absl import flags

from launch.exporting.exported import read_provenance
from launch.setup import flags as launch_flags
from world_model.families import get_family


def family_of(directory: str):
    """The family of an export. Raises WeightsError where the directory holds none, FamilyError where the family is not
    installed."""
    return get_family(read_provenance(Path(directory))["family"])


def main(_) -> None:
    args = flags.FLAGS
    write_step = family_of(args.export).part("torch_step", "launch.export_step")
    description = write_step(args.export, args.out, block=args.block, batch=args.batch, dtype=args.dtype)
    print(f"written: {args.out}, {description}")


if __name__ == "__main__":
    flags.DEFINE_string("export", None, "directory of launch.export, of a family that has a step to write")
    flags.DEFINE_string("out", None, "file to write")
    flags.DEFINE_integer("block", 1, "autoregressive block, from 1")
    flags.DEFINE_integer("batch", 1, "samples at once")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "to compute in")
    flags.mark_flags_as_required(["export", "out"])
    launch_flags.run(main)
