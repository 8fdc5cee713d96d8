"""Writer of the table of docs/plans.md, from what `launch.plan --json` printed.

    python -m launch.plan --config=configs/dreamzero_14b.py --topology=v5p:4x4x4 --json > plans/dreamzero_14b-v5p.json
    python -m benchmarks.plan_table plans/*.json

Each file becomes a row that bears its name. Planned, not run: in brackets the interval that published steps leave.
"""

import sys
from pathlib import Path

from world_model import kinds

COLUMNS = {
    "plan": lambda p: p["name"],
    "slice": lambda p: f"{p['topology']}, {p['chips']} chips" + (f", {p['slices']} slices" if p["slices"] > 1 else ""),
    "batch": lambda p: f"{p['global_batch']}",
    "mesh, remat": lambda p: ", ".join([*(f"{axis} {n}" for axis, n in p["mesh"].items() if n > 1), p["remat"]]),
    "HBM, GiB": lambda p: f"{p['hbm_needed_gib_per_chip']:.1f} of {p['hbm_capacity_gib_per_chip']:.0f}",
    "executed / model FLOP": lambda p: f"{p['executed_flops_per_sample'] / p['model_flops_per_sample']:.3f}",
    "collectives, GB (/ FSDP minimum)": lambda p: (
        f"{p['collective_bytes_per_chip'] / 1e9:.1f} "
        f"({p['collective_bytes_per_chip'] / p['fsdp_minimum_bytes_per_chip']:.2f})"),
    "step, s": lambda p: f"{p['step_seconds']:.3g} ({p['step_seconds_least']:.3g} to {p['step_seconds_most']:.3g})",
    "MFU": lambda p: f"{p['mfu']:.1%} ({p['mfu_least']:.1%} to {p['mfu_most']:.1%})",
    "samples/s/chip": lambda p: f"{p['samples_per_second_per_chip']:.3g}",
    "tracing; compiling, s": lambda p: f"{p['lower_seconds']:.0f}; {p['compile_seconds']:.0f}",
}


def table(plans: list[dict]) -> str:
    """Formats plans as Markdown, a row per plan."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *([read(plan) for read in COLUMNS.values()] for plan in plans)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def read(path: Path) -> dict:
    """Reads one plan. Raises ValueError naming the file."""
    return kinds.read(path, kinds.MAP) | {"name": path.stem}


if __name__ == "__main__":
    try:
        print(table([read(Path(argument)) for argument in sys.argv[1:]]))
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"plan_table: {error}")
