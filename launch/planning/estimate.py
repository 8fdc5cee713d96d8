"""What a compiled train step takes of a slice, and how long by stated ingredients: the numbers of a plan."""

import collections

import numpy as np

from world_model.analysis.chips import Chip
from world_model.analysis.program import Program
from world_model.layers.transformer import ATTENTION_SCOPE

ICI_EFFICIENCY = 0.8  # of the published bandwidth that ring collectives reach
MATMUL_EFFICIENCY = 0.75  # of the peak, at least this time for products, should the compiler's estimate be lower
KERNEL_EFFICIENCY = {"fwd": 0.5, "bwd": 0.5}  # of the peak, for attention kernels of chips not looked at: a guess
FLASH_PRODUCTS = 7  # of a flash kernel, forward 2 and backward 5: it makes the scores again; the model's count has 6
GIB = 2**30


def estimate(family, config, mesh, slices: int, target: dict, chip: Chip, compiled) -> dict:
    """What the compiled program takes, and how long by the stated ingredients."""
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    parts = family.training_flops
    batch, model = config.train.global_batch_size, sum(parts.values())
    devices, chips = mesh.size, mesh.size // chip.devices
    executed = program.executed_flops() * devices / batch
    by_kernel = {kind: program.kernel_flops(kind) * devices / batch for kind in KERNEL_EFFICIENCY}
    in_kernels = sum(by_kernel.values())
    exchanged = program.collective_bytes()
    by_kind, between_slices = collections.Counter(), 0.0
    for collective, count in exchanged.items():
        how = "beside products" if collective.overlapped else "alone"
        # Devices are numbered slice by slice.
        crosses = slices > 1 and collective.stride * (collective.group - 1) >= devices // slices
        between_slices += count * chip.devices * crosses
        where = "slices" if crosses else axis_of(mesh, collective)
        by_kind[f"{collective.kind} over {collective.group} of {where}, {how}"] += count * chip.devices
    parameters = sum(int(np.prod(p.shape)) for p in target["params"].values())
    shards = mesh.shape["fsdp"]
    minimum = 3 * 2 * parameters * (shards - 1) / shards * chip.devices  # two gathers and one scatter of bf16 weights
    cycles = program.estimated_cycles() / chip.clock
    per_chip, efficiency = batch / chips / chip.peak_flops, chip.kernel_efficiency or KERNEL_EFFICIENCY
    computed = (max(cycles, (executed - in_kernels) * per_chip / MATMUL_EFFICIENCY)
                + sum(flops * per_chip / efficiency[kind] for kind, flops in by_kernel.items()))
    exchanging = ((sum(by_kind.values()) - between_slices) / (chip.ici_bandwidth * ICI_EFFICIENCY)
                  + between_slices / chip.dcn_bandwidth)
    overlapped, serial = max(computed, exchanging), computed + exchanging
    mfu = lambda seconds: model * batch / chips / seconds / chip.peak_flops
    peak = (memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
            - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes) * chip.devices
    return {
        "parameters": parameters, "model_flops_per_sample": model, "model_flops_by_part": parts,
        "executed_flops_per_sample": executed,
        "visible_attention_flops_per_sample": parts["self_attention"] * (FLASH_PRODUCTS / 6 if in_kernels else 1),
        "kernel_flops_per_sample": in_kernels, "kernel_efficiency": efficiency,
        "executed_attention_flops_per_sample": program.executed_flops(ATTENTION_SCOPE) * devices / batch,
        "hbm_arguments_gib_per_chip": memory.argument_size_in_bytes * chip.devices / GIB,
        "hbm_temporaries_gib_per_chip": memory.temp_size_in_bytes * chip.devices / GIB,
        "hbm_live_gib_per_chip": memory.peak_memory_in_bytes * chip.devices / GIB,
        "hbm_peak_gib_per_chip": peak / GIB, "hbm_capacity_gib_per_chip": chip.hbm_gib,
        "largest_arrays": [{"mib": count / 2**20, "shape": shape, "made_by": name}
                           for count, shape, name in program.largest_arrays(10)],
        "collective_bytes_per_chip": sum(by_kind.values()), "collective_bytes_by_kind": dict(by_kind),
        "fsdp_minimum_bytes_per_chip": minimum,
        "compute_seconds": computed, "compiler_estimated_seconds": cycles, "communication_seconds": exchanging,
        "step_seconds_overlapped": overlapped, "step_seconds_serial": serial,
        "mfu_overlapped": mfu(overlapped), "mfu_serial": mfu(serial),
        "samples_per_second_per_chip": batch / chips / overlapped,
        "chip_hours": overlapped * config.train.steps * chips / 3600,
        "dollars": None if chip.dollars_per_hour is None
        else overlapped * config.train.steps * chips / 3600 * chip.dollars_per_hour}


def axis_of(mesh, collective) -> str:
    """The mesh axis along which a group lies (or a stage of it), by the distance of its devices' numbers."""
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)
    for axis, name in enumerate(mesh.axis_names):
        line = np.sort(numbers.swapaxes(axis, -1).reshape(-1, numbers.shape[axis])[0])
        if len(line) >= collective.group > 1 and collective.stride in np.diff(line) * np.arange(1, len(line)):
            return name
    return f"stride {collective.stride}"


def row(p: dict) -> str:
    """One line about one plan."""
    if "error" in p:
        return f"{p['topology']} context {p['context']} remat {p['remat']}: {p['error']}"
    mesh = " ".join(f"{axis} {size}" for axis, size in p["mesh"].items())
    spare = p["hbm_capacity_gib_per_chip"] - p["hbm_peak_gib_per_chip"]
    room = f"{p['hbm_peak_gib_per_chip']:5.1f} GiB, {abs(spare):5.1f} {'free' if spare >= 0 else 'TOO MUCH'}"
    return (f"{p['samples_per_second_per_chip']:.5f} samples/s/chip  MFU {100 * p['mfu_overlapped']:4.1f} to "
            f"{100 * p['mfu_serial']:4.1f}%  {room}  {mesh}  remat {p['remat']}")


def table(plans: list[dict]) -> str:
    """Plans by estimated throughput: those that fit, then those that do not, then those that were refused."""
    def rank(p: dict):
        fits = "error" not in p and p["hbm_peak_gib_per_chip"] <= p["hbm_capacity_gib_per_chip"]
        return "error" in p, not fits, -p.get("samples_per_second_per_chip", 0.0)

    return "\n".join(row(p) for p in sorted(plans, key=rank))


def describe(p: dict) -> str:
    """The report for a person, with the formulas."""
    si = lambda x: f"{x:.3e}"
    model, executed = p["model_flops_per_sample"], p["executed_flops_per_sample"]
    efficiency = " and ".join(f"{value:.2f}" for value in p["kernel_efficiency"].values())
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
        f"self-attention executed {si(p['executed_attention_flops_per_sample'])}; the same products on visible pairs "
        f"alone {si(p['visible_attention_flops_per_sample'])}",
        f"HBM per chip: {p['hbm_peak_gib_per_chip']:.1f} of {p['hbm_capacity_gib_per_chip']:.0f} GiB "
        f"({'fits' if fits else 'DOES NOT FIT'}): arguments {p['hbm_arguments_gib_per_chip']:.1f}, temporaries "
        f"{p['hbm_temporaries_gib_per_chip']:.1f}; at most "
        f"{p['hbm_live_gib_per_chip']:.1f} at once; largest arrays:",
        *(f"  {array['mib']:9.1f} MiB  {array['shape']:28} {array['made_by'][-70:]}" for array in p["largest_arrays"]),
        f"collectives per chip and step: {p['collective_bytes_per_chip'] / GIB:.1f} GiB; two gathers and one scatter "
        f"of the bf16 weights would be {p['fsdp_minimum_bytes_per_chip'] / GIB:.1f}",
        *(f"  {name:44} {count / GIB:8.2f} GiB" for name, count in kinds),
        f"step {p['step_seconds_overlapped']:.2f} s (communication hidden) to {p['step_seconds_serial']:.2f} s (not "
        f"hidden): compute {p['compute_seconds']:.2f} s = the larger of the compiler's cycle estimates "
        f"({p['compiler_estimated_seconds']:.2f} s) and FLOP outside attention kernels / ({MATMUL_EFFICIENCY} x peak), "
        f"and FLOP inside / ({efficiency} of the peak, forward and backward); communication "
        f"{p['communication_seconds']:.2f} s = bytes / ({ICI_EFFICIENCY} x published ICI)",
        f"MFU {100 * p['mfu_overlapped']:.1f}% to {100 * p['mfu_serial']:.1f}%; "
        f"{p['samples_per_second_per_chip']:.4f} samples/s/chip; {p['chip_hours']:,.0f} chip-hours, {cost}, "
        "for the run"])
