"""Starts a training job on TPU slices, or prints exactly what would start it.

    python -m launch.submit --config=configs/NAME.py --topology=v5p:4x4x4 --bucket=BUCKET \
        --workdir=/runs/RUN --image=REGISTRY/wamax:TAG [--slices=2] [--by=jobset|xpk|queued] --dry-run

The bucket is mounted at /runs on every host (docs/pods.md). jobset prints a manifest for `kubectl apply -f -`; xpk and
queued print commands. Without --dry-run they are run.
"""

import posixpath
import re
import shlex
import subprocess

import yaml
from absl import flags
from ml_collections import config_flags

from launch.cluster import manifests
from launch.cluster.slices import Slice
from launch.setup import flags as launch_flags
from launch.setup import values


def make_job(name: str, topology: str, slices: int, image: str, bucket: str, command: list[str]) -> manifests.Job:
    """Raises ValueError where a name or a topology cannot be."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise ValueError(f"--name={name}: lower-case letters, digits and '-', at most 40, beginning with a letter")
    if slices < 1:
        raise ValueError(f"--slices={slices}: at least 1")
    if "/" in bucket:
        raise ValueError(f"--bucket={bucket}: the name of a bucket alone is meant, without gs://")
    return manifests.Job(name, Slice.parse(topology), slices, ("env", manifests.COMPILED, *command), image, bucket)


def training_command(file: str, overrides: dict, workdir: str) -> list[str]:
    """What every host runs: launch.train with the same config and overrides, {dotted key: value}."""
    options = [f"--config.{key}={value}" for key, value in overrides.items()]
    return ["python", "-m", "launch.train", f"--config={file}", *options, f"--workdir={workdir}"]


def job_of(args, name: str, command: list[str], workdir: str) -> manifests.Job:
    """The job of `define`'s flags. Raises ValueError where they do not go together."""
    asked = {"jobset": (), "xpk": ("cluster",), "queued": ("project", "zone")}[args.by]
    if missing := [flag for flag in ("topology", "bucket", "image", *asked) if not getattr(args, flag)]:
        why = f", which --by={args.by} needs" if missing[0] in asked else ""
        raise ValueError(f"--{missing[0]} is missing{why}")
    if not posixpath.normpath(workdir).startswith(manifests.RUNS + "/"):
        raise ValueError(f"{workdir} is no folder below {manifests.RUNS}, where the bucket is mounted")
    return make_job(name, args.topology, args.slices, args.image, args.bucket, command)


def start_command(job: manifests.Job, args) -> tuple[list[str], str]:
    """(command line that starts it, its standard input)."""
    if args.by == "jobset":
        return ["kubectl", "apply", "-f", "-"], yaml.safe_dump(manifests.jobset(job), sort_keys=False)
    if args.by == "xpk":
        return ["bash", "-e"], manifests.xpk(job, args.cluster) + "\n"
    lines = manifests.queued_resources(job, args.project, args.zone, args.spot)
    return ["bash", "-e"], "\n".join(lines[:-1]) + "\nwait\n# when done:\n# " + lines[-1] + "\n"


def start(job: manifests.Job, args) -> None:
    """Starts it, or with --dry-run prints what would. Raises CalledProcessError."""
    command, text = start_command(job, args)
    if args["dry-run"].value:
        print(f"# {shlex.join(command)}\n{text}", end="")
    else:
        subprocess.run(command, input=text, text=True, check=True)


def define() -> None:
    """Flags of where and how a job is started."""
    flags.DEFINE_string("topology", None, "chip generation and slice shape, as v5p:4x4x4")
    flags.DEFINE_integer("slices", 1, "slices of that shape")
    flags.DEFINE_string("bucket", None, "Cloud Storage bucket with hierarchical namespace, mounted at /runs")
    flags.DEFINE_string("image", None, "container image with this code (Dockerfile)")
    flags.DEFINE_string("name", "wamax", "of the job")
    flags.DEFINE_enum("by", "jobset", ["jobset", "xpk", "queued"], "who starts it")
    flags.DEFINE_string("cluster", "", "xpk: GKE cluster")
    flags.DEFINE_string("project", "", "queued: Google Cloud project")
    flags.DEFINE_string("zone", "", "queued: zone")
    flags.DEFINE_bool("spot", False, "queued: spot capacity")
    flags.DEFINE_bool("dry-run", False, "checks and prints, runs nothing")


def main(_) -> None:
    args = flags.FLAGS
    file, overrides = config_flags.get_config_filename(args["config"]), launch_flags.overridden(args["config"])
    values.check(args.config)
    if not args.config.data.datasets:
        raise ValueError(f"{file}: data.datasets is empty, and a job would end before its first step")
    command = training_command(file, overrides, args.workdir)
    start(job_of(args, args.name, command, args.workdir), args)


if __name__ == "__main__":
    launch_flags.define_config()
    define()
    flags.DEFINE_string("workdir", None, "folder of the run, below /runs")
    flags.mark_flags_as_required(["config", "workdir"])
    launch_flags.run(main)
