"""Plans as text: a report of one, with its formulas, and a table of several."""

from launch.planning import calibration
from launch.planning.estimate import GIB, GPU_HBM_EFFICIENCY, GPU_MATMUL_EFFICIENCY, ICI_EFFICIENCY


def row(p: dict) -> str:
    """Formats one plan as a line."""
    if "error" in p:
        return f"{p['topology']} context {p['context']} remat {p['remat']}: {p['error']}"
    mesh = " ".join(f"{axis} {size}" for axis, size in p["mesh"].items())
    spare = p["hbm_capacity_gib_per_chip"] - p["hbm_needed_gib_per_chip"]
    room = f"{p['hbm_needed_gib_per_chip']:5.1f} GiB, {abs(spare):5.1f} {'free' if spare >= 0 else 'TOO MUCH'}"
    return (f"{p['samples_per_second_per_chip']:.5f} samples/s/chip  MFU {100 * p['mfu']:4.1f}% "
            f"({100 * p['mfu_least']:.1f} to {100 * p['mfu_most']:.1f})  {room}  {mesh}  remat {p['remat']}")


def table(plans: list[dict]) -> str:
    """Sorts plans by estimated throughput: those that fit, then those that do not, then those that were refused."""
    def rank(p: dict):
        fits = "error" not in p and p["hbm_needed_gib_per_chip"] <= p["hbm_capacity_gib_per_chip"]
        return "error" in p, not fits, -p.get("samples_per_second_per_chip", 0.0)

    return "\n".join(row(p) for p in sorted(plans, key=rank))


def report(p: dict) -> str:
    """Formats one plan for a person."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in p["mesh"].items())
    return "\n".join([
        f"{p['topology']}, {p['chips']} chips; mesh {mesh}; global batch {p['global_batch']}; remat {p['remat']}",
        f"{p['parameters']:,} parameters; traced in {p['lower_seconds']:.0f} s, "
        f"compiled in {p['compile_seconds']:.0f} s",
        *_work(p), *_memory(p), *_passes(p), *_traffic(p), *_time(p)])


def _work(p: dict) -> list[str]:
    model, executed = p["model_flops_per_sample"], p["executed_flops_per_sample"]
    parts = sorted(p["model_flops_by_part"].items(), key=lambda item: -item[1])
    return [
        f"model FLOP per sample {model:.3e} (products of visible tokens, 3 x forward); executed {executed:.3e}, "
        f"ratio {executed / model:.3f}",
        *(f"  {name:30} {count:.3e}" for name, count in parts),
        f"self-attention executed {p['executed_attention_flops_per_sample']:.3e}; the same products on visible pairs "
        f"alone {p['visible_attention_flops_per_sample']:.3e}"]


def _memory(p: dict) -> list[str]:
    fits = p["hbm_needed_gib_per_chip"] <= p["hbm_capacity_gib_per_chip"]
    return [
        f"HBM per chip: {p['hbm_needed_gib_per_chip']:.1f} of {p['hbm_capacity_gib_per_chip']:.0f} GiB "
        f"({'fits' if fits else 'DOES NOT FIT'}): at most {p['hbm_live_gib_per_chip']:.1f} at once; arguments "
        f"{p['hbm_arguments_gib_per_chip']:.1f} and temporaries {p['hbm_temporaries_gib_per_chip']:.1f}, with code "
        f"{p['hbm_peak_gib_per_chip']:.1f}; largest arrays:",
        *(f"  {array['mib']:9.1f} MiB  {array['shape']:28} {array['made_by'][-70:]}" for array in p["largest_arrays"]),
        *([] if fits else [f"it would fit on {', '.join(p['fits_on']) or 'no chip that is known'}; what takes less "
                           "memory, cheapest first:", *(f"  {change}" for change in p["what_takes_less"])])]


def _passes(p: dict) -> list[str]:
    if not p["slowest_passes"]:
        return []
    return [f"passes that take longest outside attention kernels, by {GPU_MATMUL_EFFICIENCY:.2f} of the peak and "
            f"{GPU_HBM_EFFICIENCY:.2f} of the bandwidth of memory:",
            *(f"  {1e3 * f['seconds']:8.2f} ms  {f['bytes'] / 1e9:7.2f} GB  {f['flops'] / 1e12:7.2f} TFLOP  "
              f"{f['runs']:5.0f} x {f['name']}" for f in p["slowest_passes"])]


def _traffic(p: dict) -> list[str]:
    kinds = sorted(p["collective_bytes_by_kind"].items(), key=lambda item: -item[1])
    return [
        f"collectives per chip and step: {p['collective_bytes_per_chip'] / GIB:.1f} GiB; two gathers and one scatter "
        f"of the bf16 weights would be {p['fsdp_minimum_bytes_per_chip'] / GIB:.1f}",
        *(f"  {name:44} {count / GIB:8.2f} GiB" for name, count in kinds)]


def _time(p: dict) -> list[str]:
    efficiency = " and ".join(f"{value:.2f}" for value in p["kernel_efficiency"].values())
    cost = "no list price" if p["dollars"] is None else f"${p['dollars']:,.0f}"
    parts, calibrated = p["seconds_by_part"], p["calibrated"]
    weights = " (times " + ", ".join(f"{w:.2f}" for w in calibration.WEIGHTS.values()) + ")" if calibrated else ""
    return [
        f"{p['run']}: step {p['step_seconds']:.3g} s ({p['step_seconds_least']:.3g} to {p['step_seconds_most']:.3g}), "
        f"MFU {100 * p['mfu']:.1f}% ({100 * p['mfu_least']:.1f} to {100 * p['mfu_most']:.1f})",
        "the interval is what published steps were off by (docs/plans.md)" if calibrated else
        "not calibrated: from all communication hidden behind the work to none of it",
        f"parts{weights}: {'the roofline of all passes' if p['slowest_passes'] else 'cycle estimates of the compiler'} "
        f"{parts['compiled']:.3g} s; attention kernels at {efficiency} of the peak, forward and backward, "
        f"{parts['kernels']:.3g} s; communication at {ICI_EFFICIENCY} of the published ICI {parts['exchange']:.3g} s",
        f"{p['samples_per_second_per_chip']:.4f} samples/s/chip; {p['chip_hours']:,.0f} chip-hours, {cost}, for the "
        "run"]
