"""Published figures of accelerators. Planning, metrics and benchmarks read them here."""

import dataclasses
import os

PREALLOCATED = 0.75  # share of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says another


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its maker publishes it."""

    peak_flops: float  # bf16, per second
    hbm_gib: float
    ici_bandwidth: float  # bytes per second that a chip sends to its neighbours, all links: half of "bidirectional"
    clock: float  # cycles per second of the matrix units, derived: peak / FLOP per cycle
    devices: int  # devices that JAX shows per chip
    dollars_per_hour: float | None  # on demand, list price in us-central where there is one
    kind: str  # `device_kind` in JAX
    dcn_bandwidth: float  # bytes per second that a chip sends to other slices: its share of the host's network
    kernel_efficiency: dict[str, float]  # share of the peak, by attention kernel
    hbm_bandwidth: float | None = None  # bytes per second; where the compiler estimates no cycles, a GPU's

    @property
    def usable_gib(self) -> float:
        """GiB that JAX takes: all of a TPU's; of a GPU's a share that it takes at the start."""
        if self.hbm_bandwidth is None:
            return self.hbm_gib
        return self.hbm_gib * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", PREALLOCATED))


# TPU: Cloud TPU's page of each generation (v5p: 459 TFLOP/s, 95 GiB, 1200 GB/s both ways; v6e: 918, 32, 3200 Gbit/s;
# v5e: 197, 16, 1600 Gbit/s). Each cycle v5e works with four and v5p with eight units of 128 x 128 multiply-adds, v6e
# with two and v7x with four of 256 x 256 that take two rows at a time (benchmarks/kernel_schedule.py).
# Kernels: `python -m benchmarks.kernel_schedule` reads the 14B's self-attention in the schedule that libtpu 0.0.42.1
# makes. It leaves out waits for memory, and no chip has confirmed it.
# GPU: NVIDIA's data sheets (dense bf16, accumulated in float32; NVLink, or PCIe where there is none, one way; each GPU
# has a network adapter of 400 Gbit/s, those before Hopper of 200); the memory is what the driver shows. The clock is
# the boost clock: compilers for GPUs estimate no cycles. Attention is taken at 600 and 450 TFLOP/s of an H100, as
# published kernels reach (arXiv 2407.08608), and that share of others.
# Prices are of September 2026, of GPUs an eighth of Google's machines with eight.
_CUDNN = {"fwd": 600 / 989, "bwd": 450 / 989}
CHIPS = {
    "v5e": Chip(197e12, 16.0, 200e9, 197e12 / (4 * 2 * 128**2), 1, 1.20, "TPU v5 lite", 3.1e9,
                {"fwd": 0.81, "bwd": 0.91}),
    "v5p": Chip(459e12, 95.0, 600e9, 459e12 / (8 * 2 * 128**2), 1, 4.20, "TPU v5", 6.25e9,
                {"fwd": 0.77, "bwd": 0.90}),
    "v6e": Chip(918e12, 32.0, 400e9, 918e12 / (4 * 2 * 256**2), 1, 2.70, "TPU v6 lite", 6.25e9,
                {"fwd": 0.26, "bwd": 0.43}),
    "v7x": Chip(2307e12, 192.0, 600e9, 2307e12 / (8 * 2 * 256**2), 2, None, "TPU7x", 12.5e9,
                {"fwd": 0.24, "bwd": 0.41}),
    "a100": Chip(312e12, 79.2, 300e9, 1.41e9, 1, None, "NVIDIA A100-SXM4-80GB", 25e9, _CUDNN, 2.039e12),
    "a6000": Chip(154.8e12, 47.5, 56e9, 1.8e9, 1, None, "NVIDIA RTX A6000", 25e9, _CUDNN, 0.768e12),
    "l40s": Chip(362e12, 44.5, 32e9, 2.52e9, 1, None, "NVIDIA L40S", 25e9, _CUDNN, 0.864e12),
    "rtx4090": Chip(165.2e12, 23.6, 32e9, 2.52e9, 1, None, "NVIDIA GeForce RTX 4090", 25e9, _CUDNN, 1.008e12),
    "h100": Chip(989e12, 79.6, 450e9, 1.98e9, 1, 11.06, "NVIDIA H100 80GB HBM3", 50e9, _CUDNN, 3.352e12),
    "h200": Chip(989e12, 140.4, 450e9, 1.98e9, 1, 10.60, "NVIDIA H200", 50e9, _CUDNN, 4.8e12),
    "b200": Chip(2250e12, 178.3, 900e9, 1.965e9, 1, None, "NVIDIA B200", 50e9, _CUDNN, 7.672e12),
}

# Part of a `device_kind`, in lower case -> chip. The first match counts, so "v5 lite" stands before "v5".
_KINDS = {"v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v6 lite": "v6e", "v6e": "v6e", "tpu7x": "v7x", "v7x": "v7x",
          "h100": "h100", "h200": "h200", "a100": "a100", "a6000": "a6000", "l40s": "l40s",
          "rtx 4090": "rtx4090", "b200": "b200"}
_V4_PEAK_FLOPS = 275e12  # Cloud TPU's page of v4, which is in no plan


def chip_of(device) -> str | None:
    """The name of a device's chip; None where `CHIPS` lacks it."""
    return next((name for name, chip in CHIPS.items() if chip.kind == device.device_kind), None)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of one JAX device in FLOP/s, for any variant of a chip; None where it is not known (a CPU)."""
    kind = device_kind.lower()
    if "v4" in kind:
        return _V4_PEAK_FLOPS
    chip = next((CHIPS[name] for part, name in _KINDS.items() if part in kind), None)
    return None if chip is None else chip.peak_flops / chip.devices
