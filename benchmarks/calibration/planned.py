"""Steps of TPUs that docs give as planned: the parts of their compiled programs, weighed by the fit of the day."""

import json
from pathlib import Path

from launch.planning import calibration
from world_model.analysis.chips import CHIPS

KEPT = Path(__file__).with_name("planned.json")
NUMBERS = ("topology", "chips", "global_batch", "model_flops_per_sample", "seconds_by_part")  # of launch.plan --json


def read() -> dict[str, dict]:
    """{program, slice and batch: date and NUMBERS}."""
    return json.loads(KEPT.read_text())


def keep(name: str, date: str, plan: dict) -> None:
    """Keeps what `launch.plan --json` printed, in the place of an older plan of that name."""
    KEPT.write_text(json.dumps(read() | {name: {"date": date, **{key: plan[key] for key in NUMBERS}}}, indent=1) + "\n")


def step_and_mfu(plan: dict) -> tuple[str, str]:
    """Step and MFU with their intervals, as docs print them."""
    step = calibration.step_seconds(plan["seconds_by_part"], calibrated=True)
    digits = 2 if step.expected >= 1 else 3
    peak = CHIPS[plan["topology"].partition(":")[0]].peak_flops
    at_peak = 100 * plan["model_flops_per_sample"] * plan["global_batch"] / plan["chips"] / peak
    return (f"{step.expected:.{digits}f} s ({step.least:.{digits}f} to {step.most:.{digits}f})",
            f"{at_peak / step.expected:.0f}% ({at_peak / step.most:.0f} to {at_peak / step.least:.0f})")


def table() -> str:
    """Formats all of them as Markdown."""
    lines = ["| program, slice, batch | compiled; kernels; exchange | step | MFU | compiled on |",
             "|---|---|---|---|---|"]
    for name, plan in read().items():
        parts = "; ".join(f"{seconds:#.3g}" for seconds in plan["seconds_by_part"].values())
        lines.append(f"| {name} | {parts} s | {' | '.join(step_and_mfu(plan))} | {plan['date']} |")
    return "\n".join(lines)
