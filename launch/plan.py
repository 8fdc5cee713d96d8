"""What a run costs on a slice of TPUs, before it is booked: the real train step, compiled ahead of time.

    python -m launch.plan --config=configs/dreamzero_14b.py --topology=v5p:4x4x4 [--json]

Needs libtpu (extra: tpu) and no TPU. Forward, backward and optimizer with donated state are compiled for the named
slice; memory, executed FLOP and collectives are read from the compiled program. Step time is a bracket: all
communication hidden behind the work, and none of it.
"""

import collections
import json
import os
import sys
import time

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies

from launch import build, train_parts
from launch import flags as launch_flags
from launch.chips import CHIPS, Chip
from world_model import sharding
from world_model.batch import encoded_batch_spec
from world_model.program import Program
from world_model.transformer import ATTENTION_SCOPE

ICI_EFFICIENCY = 0.8  # of the published bandwidth that ring collectives reach
MATMUL_EFFICIENCY = 0.75  # of the peak, where the compiler gives no cycle estimate
GIB = 2**30


class PlanError(ValueError):
    """What was asked for cannot be planned; says what would work."""


def plan(config, topology: str) -> dict:
    """The JSON object. Raises PlanError or ValueError with a sentence for the person who asked."""
    chip, devices = describe_topology(topology)
    mesh, family = train_parts.make_mesh(config, devices), build.model(config)
    _, target = train_parts.make_target(config, family, mesh)
    step = train_parts.make_step(config, build.objective(config, family, {"video": {}, "text": {}}), target)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step.lower(target, abstract_batch(config, family.spec, mesh))
        traced = time.perf_counter()
        compiled = lowered.compile()
    finished = time.perf_counter()
    facts = {"topology": topology, "chips": len(devices) // chip.devices,
             "mesh": dict(mesh.shape), "global_batch": config.train.global_batch_size,
             "remat": config.train.remat, "lower_seconds": traced - began, "compile_seconds": finished - traced}
    return facts | work(family, config, target, chip, facts["chips"], compiled)


def describe_topology(topology: str) -> tuple[Chip, list]:
    """(chip, devices) of "v5p:4x4x4". Raises PlanError on names that mean nothing."""
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise PlanError(f"--topology={topology}: {generation!r} is no chip; there are {', '.join(CHIPS)}, "
                        "as in v5p:4x4x4")
    # Without these libtpu looks for the machine that it believes to run on.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
                        ("TPU_ACCELERATOR_TYPE", "v5p-8")):
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises what it likes
        if "not installed" in str(error):
            raise PlanError("libtpu, the TPU compiler, is missing: pip install 'wamax[tpu]'") from error
        raise PlanError(f"--topology={topology}: the compiler knows no such slice: "
                        f"{str(error).splitlines()[0]}") from error
    return CHIPS[generation], list(found.devices)


def abstract_batch(config, spec, mesh) -> dict:
    """Shapes of one global batch of encoded samples, placed."""
    layout, placed = build.layout_of(config), sharding.batch_sharding(mesh)
    fields = encoded_batch_spec(
        layout, action_dim=spec.action_dim, state_dim=spec.state_dim, text=(spec.text_length, spec.text_dim),
        latent=(spec.latent_height, spec.latent_width, spec.latent_channels), **spec.stored)
    return {name: jax.ShapeDtypeStruct((config.train.global_batch_size, *shape), dtype, sharding=placed)
            for name, (shape, dtype) in fields.items()}


def work(family, config, target: dict, chip: Chip, chips: int, compiled) -> dict:
    """What the compiled program takes, and how long by the stated ingredients."""
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    parts = family.training_flops
    batch, model = config.train.global_batch_size, sum(parts.values())
    devices = chips * chip.devices
    executed = program.executed_flops() * devices / batch
    exchanged = program.collective_bytes()
    by_kind = collections.Counter()
    for collective, count in exchanged.items():
        by_kind[f"{collective.kind} over {collective.group} (stride {collective.stride})"] += count * chip.devices
    parameters = sum(int(np.prod(p.shape)) for p in target["params"].values())
    shards = sharding_ways(config, devices)
    minimum = 3 * 2 * parameters * (shards - 1) / shards * chip.devices  # two gathers and one scatter of bf16 weights
    cycles = program.estimated_cycles() / chip.clock
    computed = max(cycles, executed * batch / chips / (chip.peak_flops * MATMUL_EFFICIENCY))
    exchanging = sum(by_kind.values()) / (chip.ici_bandwidth * ICI_EFFICIENCY)
    overlapped, serial = max(computed, exchanging), computed + exchanging
    mfu = lambda seconds: model * batch / chips / seconds / chip.peak_flops
    peak = (memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
            - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes) * chip.devices
    return {
        "parameters": parameters, "model_flops_per_sample": model, "model_flops_by_part": parts,
        "executed_flops_per_sample": executed,
        "visible_attention_flops_per_sample": parts["self_attention"],
        "executed_attention_flops_per_sample": program.executed_flops(ATTENTION_SCOPE) * devices / batch,
        "hbm_arguments_gib_per_chip": memory.argument_size_in_bytes * chip.devices / GIB,
        "hbm_temporaries_gib_per_chip": memory.temp_size_in_bytes * chip.devices / GIB,
        "hbm_peak_gib_per_chip": peak / GIB, "hbm_capacity_gib_per_chip": chip.hbm_gib,
        "collective_bytes_per_chip": sum(by_kind.values()), "collective_bytes_by_kind": dict(by_kind),
        "fsdp_minimum_bytes_per_chip": minimum,
        "compute_seconds": computed, "compiler_estimated_seconds": cycles, "communication_seconds": exchanging,
        "step_seconds_overlapped": overlapped, "step_seconds_serial": serial,
        "mfu_overlapped": mfu(overlapped), "mfu_serial": mfu(serial),
        "samples_per_second_per_chip": batch / chips / overlapped,
        "chip_hours": overlapped * config.train.steps * chips / 3600,
        "dollars": None if chip.dollars_per_hour is None
        else overlapped * config.train.steps * chips / 3600 * chip.dollars_per_hour}


def sharding_ways(config, devices: int) -> int:
    """Devices over which a weight is gathered."""
    fixed = [config.mesh[axis] for axis in ("data", "tensor", "context")]
    return config.mesh.fsdp if config.mesh.fsdp > 0 else devices // int(np.prod(fixed))


def describe(p: dict) -> str:
    """The report for a person, with the formulas."""
    si = lambda x: f"{x:.3e}"
    model, executed = p["model_flops_per_sample"], p["executed_flops_per_sample"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in p["mesh"].items())
    fits = p["hbm_peak_gib_per_chip"] <= p["hbm_capacity_gib_per_chip"]
    parts = sorted(p["model_flops_by_part"].items(), key=lambda item: -item[1])
    kinds = sorted(p["collective_bytes_by_kind"].items(), key=lambda item: -item[1])
    cost = "no list price" if p["dollars"] is None else f"${p['dollars']:,.0f}"
    return "\n".join([
        f"{p['topology']}, {p['chips']} chips; mesh {mesh}; global batch {p['global_batch']}; remat {p['remat']}",
        f"{p['parameters']:,} parameters; traced in {p['lower_seconds']:.0f} s, "
        f"compiled in {p['compile_seconds']:.0f} s",
        f"model FLOP per sample {si(model)} (products of visible tokens, 3 x forward); executed {si(executed)}, "
        f"ratio {executed / model:.3f}",
        *(f"  {name:30} {si(count)}" for name, count in parts),
        f"self-attention executed {si(p['executed_attention_flops_per_sample'])}, visible "
        f"{si(p['visible_attention_flops_per_sample'])}",
        f"HBM per chip: {p['hbm_peak_gib_per_chip']:.1f} of {p['hbm_capacity_gib_per_chip']:.0f} GiB "
        f"({'fits' if fits else 'DOES NOT FIT'}): arguments {p['hbm_arguments_gib_per_chip']:.1f}, temporaries "
        f"{p['hbm_temporaries_gib_per_chip']:.1f}",
        f"collectives per chip and step: {p['collective_bytes_per_chip'] / GIB:.1f} GiB; two gathers and one scatter "
        f"of the bf16 weights would be {p['fsdp_minimum_bytes_per_chip'] / GIB:.1f}",
        *(f"  {name:44} {count / GIB:8.2f} GiB" for name, count in kinds),
        f"step {p['step_seconds_overlapped']:.2f} s (communication hidden) to {p['step_seconds_serial']:.2f} s (not "
        f"hidden): compute {p['compute_seconds']:.2f} s = the larger of the compiler's cycle estimates "
        f"({p['compiler_estimated_seconds']:.2f} s) and executed FLOP / ({MATMUL_EFFICIENCY} x peak); communication "
        f"{p['communication_seconds']:.2f} s = bytes / ({ICI_EFFICIENCY} x published ICI)",
        f"MFU {100 * p['mfu_overlapped']:.1f}% to {100 * p['mfu_serial']:.1f}%; "
        f"{p['samples_per_second_per_chip']:.4f} samples/s/chip; {p['chip_hours']:,.0f} chip-hours, {cost}, "
        "for the run"])


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    try:
        found = plan(args.config, args.topology)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"plan: {error}")
    print(json.dumps(found) if args.json else describe(found))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_config()
    flags.DEFINE_string("topology", None, "chip generation and slice shape, as v5p:4x4x4")
    flags.DEFINE_bool("json", False, "one JSON object instead of the report")
    flags.mark_flags_as_required(["config", "topology"])
    launch_flags.run(main)
