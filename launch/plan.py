"""What a run costs on a slice of TPUs, before it is booked: the real train step, compiled ahead of time.

    python -m launch.plan --config=configs/NAME.py --topology=v5p:4x4x4 [--slices=2] [--json] [--sweep | --encoders]
    python -m launch.plan --config=configs/NAME.py --config.model.attention=cudnn --topology=h100:8

Needs libtpu (extra: tpu) and no TPU, or for a GPU's name JAX's CUDA plug-in and no GPU (launch/planning/gpu.py, ptxas
on the PATH); --topology=local plans for the accelerators that JAX sees here. Forward,
backward and optimizer with donated state are compiled for the slice; memory, executed FLOP and collectives are read
from the compiled program. Step time is a bracket: all communication hidden behind the work, and none of it.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator

import jax
from absl import flags
from jax.experimental import topologies

from launch.planning import encoding, estimate, gpu, memory, plan_text
from launch.setup import fit, training
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment
from world_model.analysis.chips import CHIPS, Chip, chip_of
from world_model.parallel.remat import KEPT

LIBTPU_NAMES = {"v7x": "tpu7x"}
LOCAL = "local"


class PlanError(ValueError):
    """What was asked for cannot be planned; says what would work."""


def plan(config, topology: str, slices: int = 1) -> dict:
    """The JSON object. Raises PlanError or ValueError with a sentence for the person who asked."""
    chip, devices = describe_topology(topology, slices)
    fit.check_kernel(config, devices)
    experiment = Experiment(config).fitted(devices)
    config, mesh = experiment.config, training.make_mesh(experiment.config, devices)
    _, target = training.make_target(experiment, mesh)
    step = training.make_step(experiment, target)
    began = time.perf_counter()
    platform = {"gpu": "cuda"}.get(devices[0].platform, devices[0].platform)
    with jax.set_mesh(mesh), gpu.cudnn_assumed(), memory.explained(config, target, mesh):
        lowered = step.trace(target, training.abstract_batch(experiment, mesh)).lower(lowering_platforms=(platform,))
        traced = time.perf_counter()
        compiled = lowered.compile()
    finished = time.perf_counter()
    facts = {"topology": topology, "slices": slices, "chips": len(devices) // chip.devices, "mesh": dict(mesh.shape),
             "global_batch": config.train.global_batch_size, "remat": config.train.remat,
             "lower_seconds": traced - began, "compile_seconds": finished - traced}
    found = facts | estimate.estimate(experiment.model, config, mesh, slices, target, chip, compiled)
    return found | {"what_takes_less": memory.changes(config, mesh), "fits_on": [
        name for name, other in CHIPS.items() if other.usable_gib >= found["hbm_needed_gib_per_chip"]]}


def sweep(config, topology: str, slices: int = 1) -> Iterator[dict]:
    """Plans of the config on meshes and under policies around its own, one by one; what cannot be compiled is a dict
    of topology, mesh, remat and error."""
    _, devices = describe_topology(topology, slices)
    seen = set()
    for context, remat in itertools.product((0, 1, 2, 4), KEPT):
        variant = config.copy_and_resolve_references()
        with variant.unlocked():
            variant.mesh.update(data=0, fsdp=0, context=context)
            variant.train.remat = remat
        try:
            mesh = fit.choose_mesh(variant, len(devices))
            if (key := (*mesh.values(), remat)) in seen:
                continue
            seen.add(key)
            yield plan(variant, topology, slices)
        except (ValueError, RuntimeError) as error:
            yield {"topology": topology, "context": context, "remat": remat, "error": str(error).splitlines()[0]}


def describe_topology(topology: str, slices: int = 1) -> tuple[Chip, list]:
    """(chip, devices) of "v5p:4x4x4", or of the devices here. Raises PlanError on names that mean nothing."""
    if topology == LOCAL:
        return describe_local()
    generation, _, shape = topology.partition(":")
    if generation in gpu.CARDS:
        return gpu.described(topology)
    chips = [name for name in CHIPS if CHIPS[name].kind.startswith("TPU")]
    if generation not in chips:
        raise PlanError(f"--topology={topology}: {generation!r} is no chip; there are {', '.join(chips)}, "
                        f"as in v5p:4x4x4, GPUs that somebody describes ({gpu.nearest(generation)}), as in h100:8, "
                        f"and {LOCAL} for the accelerators here")
    # Without these libtpu looks for the machine that it believes to run on.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
                        ("TPU_ACCELERATOR_TYPE", "v5p-8"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")):
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{LIBTPU_NAMES.get(generation, generation)}:{shape}", num_slices=slices)
    except Exception as error:  # libtpu raises what it likes
        if "not installed" in str(error):
            raise PlanError("libtpu, the TPU compiler, is missing: pip install 'wamax[tpu]'") from error
        raise PlanError(f"--topology={topology}: the compiler knows no such slice: "
                        f"{str(error).splitlines()[0]}") from error
    return CHIPS[generation], list(found.devices)


def describe_local() -> tuple[Chip, list]:
    """(chip, devices) that JAX sees here. Raises PlanError where nothing is published of them."""
    devices = jax.devices()
    name = chip_of(devices[0])
    if name is None:
        raise PlanError(f"--topology={LOCAL}: no figures of {devices[0].device_kind!r}, the devices here; there are: "
                        + ", ".join(chip.kind for chip in CHIPS.values()))
    return CHIPS[name], devices


def main(_) -> None:
    args = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)  # a program for devices that are not here is not read back
    if args.sweep:
        candidates = []
        for candidate in sweep(args.config, args.topology, args.slices):
            candidates.append(candidate)
            print(plan_text.row(candidate), file=sys.stderr, flush=True)  # each takes minutes
        print(json.dumps(candidates) if args.json else plan_text.table(candidates))
    elif args.encoders:
        chip, devices = describe_topology(args.topology, args.slices)
        found = encoding.plan(Experiment(args.config), chip, devices[0])
        print(json.dumps(found) if args.json else encoding.report(args.topology, found))
    else:
        found = plan(args.config, args.topology, args.slices)
        print(json.dumps(found) if args.json else plan_text.report(found))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_config()
    flags.DEFINE_string("topology", None, "chip generation and slice shape, as v5p:4x4x4; or local")
    flags.DEFINE_integer("slices", 1, "slices of that shape, joined by the data-centre network")
    flags.DEFINE_bool("sweep", False, "plans meshes and remat policies around the config's; a table, fastest first")
    flags.DEFINE_bool("encoders", False, "plans launch.precompute on one chip instead of a step")
    flags.DEFINE_bool("json", False, "one JSON object instead of the report")
    flags.mark_flags_as_required(["config", "topology"])
    launch_flags.run(main, RuntimeError)
