"""Estimates of a plan: what a compiled train step takes of a slice, and how long it runs by stated ingredients."""

import collections
from typing import NamedTuple

import numpy as np

from launch.planning import calibration
from world_model.analysis import roofline
from world_model.analysis.chips import Chip
from world_model.analysis.program import KERNEL_PRODUCTS, Program
from world_model.layers.transformer import ATTENTION_SCOPE

ICI_EFFICIENCY = 0.8  # share of the published bandwidth that ring collectives reach
# Of a GPU, whose compiler estimates nothing: shares of the published peak and bandwidth, seen on no card. 650 TFLOP/s
# and 3.0 TB/s of an H100.
GPU_MATMUL_EFFICIENCY, GPU_HBM_EFFICIENCY = 650 / 989, 3.0 / 3.352
MATMUL_EFFICIENCY = 0.75  # share of the peak that products reach where the compiler estimates no time
FLASH_PRODUCTS = 7  # a flash kernel makes the scores again: 2 products forward, 5 backward; the model's count has 6
GIB = 2**30


class Work(NamedTuple):
    """FLOP per sample."""

    by_part: dict[str, float]  # what the model needs
    executed: float  # what the program runs
    in_kernels: dict[str, float]  # the share of it inside attention kernels, by kind

    @property
    def self_attention(self) -> float:
        """What the model needs in self-attention, of all stacks."""
        return sum(flops for part, flops in self.by_part.items() if part.endswith("self_attention"))


class Traffic(NamedTuple):
    """Bytes that one chip sends in a step."""

    by_kind: dict[str, float]
    between_slices: float  # the share of it that crosses the data-centre network


def estimate(family, config, mesh, slices: int, target: dict, chip: Chip, compiled) -> dict:
    """Computes the numbers of a plan from a compiled train step; target: the abstract state."""
    program, batch, devices = Program(compiled.as_text()), config.train.global_batch_size, mesh.size
    work = Work(family.training_flops, program.executed_flops() * devices / batch,
                {kind: program.kernel_flops(kind) * devices / batch for kind in KERNEL_PRODUCTS})
    traffic = count_traffic(program, mesh, slices, chip)
    parameters = sum(int(np.prod(p.shape)) for p in target["params"].values())
    shards, in_kernels = mesh.shape["fsdp"], sum(work.in_kernels.values())
    return {
        "parameters": parameters, "model_flops_per_sample": sum(work.by_part.values()),
        "model_flops_by_part": work.by_part, "executed_flops_per_sample": work.executed,
        "visible_attention_flops_per_sample":
            work.self_attention * (FLASH_PRODUCTS / 6 if in_kernels else 1),
        "kernel_flops_per_sample": in_kernels, "kernel_efficiency": chip.kernel_efficiency,
        "executed_attention_flops_per_sample": program.executed_flops(ATTENTION_SCOPE) * devices / batch,
        **memory_of(compiled.memory_analysis(), chip),
        "largest_arrays": [{"mib": count / 2**20, "shape": shape, "made_by": name}
                           for count, shape, name in program.largest_arrays(10)],
        "collective_bytes_per_chip": sum(traffic.by_kind.values()), "collective_bytes_by_kind": traffic.by_kind,
        # FSDP needs two gathers and one scatter of the bf16 weights.
        "fsdp_minimum_bytes_per_chip": 3 * 2 * parameters * (shards - 1) / shards * chip.devices,
        **(passes := passes_of(program, chip)),
        **times_of(work, traffic, passes["compiler_estimated_seconds"], chip, batch, devices // chip.devices,
                   config.train.steps)}


def passes_of(program: Program, chip: Chip) -> dict:
    """Seconds outside attention kernels: the compiler's cycle estimates, or of a GPU a roofline with its slowest
    passes."""
    if chip.hbm_bandwidth is None:
        return {"compiler_estimated_seconds": program.estimated_cycles() / chip.clock, "slowest_passes": []}
    found = roofline.passes(program, GPU_MATMUL_EFFICIENCY * chip.peak_flops, GPU_HBM_EFFICIENCY * chip.hbm_bandwidth)
    return {"compiler_estimated_seconds": roofline.seconds(found), "slowest_passes": [p._asdict() for p in found[:20]]}


def count_traffic(program: Program, mesh, slices: int, chip: Chip) -> Traffic:
    """Counts the bytes of collectives by kind, mesh axis and whether they run beside products."""
    by_kind, between_slices = collections.Counter(), 0.0
    for collective, count in program.collective_bytes().items():
        how = "beside products" if collective.overlapped else "alone"
        # Devices are numbered slice by slice.
        crosses = slices > 1 and collective.stride * (collective.group - 1) >= mesh.size // slices
        between_slices += count * chip.devices * crosses
        where = "slices" if crosses else axis_of(mesh, collective)
        by_kind[f"{collective.kind} over {collective.group} of {where}, {how}"] += count * chip.devices
    return Traffic(dict(by_kind), between_slices)


def memory_of(memory, chip: Chip) -> dict[str, float]:
    """Turns the compiler's account of one device's memory into GiB per chip.

    What must fit is what is live at once on a TPU: its compiler refuses a program by that number, and the sum of
    arguments and temporaries may be larger. A GPU's compiler refuses nothing, and there temporaries are one allocation.
    """
    gib = chip.devices / GIB
    live = memory.peak_memory_in_bytes * gib
    total = (memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
             - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes) * gib
    return {"hbm_arguments_gib_per_chip": memory.argument_size_in_bytes * gib,
            "hbm_temporaries_gib_per_chip": memory.temp_size_in_bytes * gib,
            "hbm_live_gib_per_chip": live, "hbm_peak_gib_per_chip": total,
            "hbm_needed_gib_per_chip": live if chip.hbm_bandwidth is None else total,
            "hbm_capacity_gib_per_chip": chip.usable_gib}


def times_of(work: Work, traffic: Traffic, seconds: float, chip: Chip, batch: int, chips: int, steps: int) -> dict:
    """Estimates the seconds of a step with their interval, MFU and the run's cost."""
    per_chip = batch / chips / chip.peak_flops
    outside = work.executed - sum(work.in_kernels.values())
    parts = {
        "compiled": seconds or outside * per_chip / MATMUL_EFFICIENCY,
        "kernels": sum(flops * per_chip / chip.kernel_efficiency[kind] for kind, flops in work.in_kernels.items()),
        "exchange": (sum(traffic.by_kind.values()) - traffic.between_slices) / (chip.ici_bandwidth * ICI_EFFICIENCY)
                    + traffic.between_slices / chip.dcn_bandwidth}
    calibrated = chip.kind.startswith("TPU")
    step = calibration.step_seconds(parts, calibrated)
    at_peak, hours = sum(work.by_part.values()) * per_chip, step.expected * steps * chips / 3600
    return {"run": calibration.PLANNED, "calibrated": calibrated, "seconds_by_part": parts,
            "step_seconds": step.expected, "step_seconds_least": step.least, "step_seconds_most": step.most,
            "mfu": at_peak / step.expected, "mfu_least": at_peak / step.most, "mfu_most": at_peak / step.least,
            "samples_per_second_per_chip": batch / chips / step.expected,
            "chip_hours": hours, "dollars": None if chip.dollars_per_hour is None else hours * chip.dollars_per_hour}


def axis_of(mesh, collective) -> str:
    """Names the mesh axis along which a group (or a stage of it) lies, by the distance of its devices' numbers."""
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)
    for axis, name in enumerate(mesh.axis_names):
        line = np.sort(numbers.swapaxes(axis, -1).reshape(-1, numbers.shape[axis])[0])
        if len(line) >= collective.group > 1 and collective.stride in np.diff(line) * np.arange(1, len(line)):
            return name
    return f"stride {collective.stride}"
