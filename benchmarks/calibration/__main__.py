"""Published steps beside what plans predict of them, and our planned steps; prints both tables of docs/plans.md.

    PYTHONPATH=.cache/libtpu:. JAX_PLATFORMS=cpu python -m benchmarks.calibration [--case="Wan 2.1 14B, v5p-8"] [--all]

Without options nothing is compiled: the tables come from measured.json and planned.json beside this file. The first
keeps every case with date, versions and seconds of compiling (minutes each on two cores); --case compiles one again and
--all every one. The second keeps plans of ours: --keep="NAME=FILE" adds what `launch.plan --json` wrote into FILE.
"""

import datetime
import importlib.metadata
import json
import math
from pathlib import Path

import jax
from absl import app, flags

from benchmarks.calibration import compiling, fit, planned
from benchmarks.calibration.published import CASES
from launch.planning import calibration

CASE = flags.DEFINE_multi_enum("case", [], list(CASES), "cases that are compiled again")
ALL = flags.DEFINE_bool("all", False, "compiles every case again")
KEEP = flags.DEFINE_multi_string("keep", [], "NAME=FILE: plans whose steps are kept")
KEPT = Path(__file__).with_name("measured.json")
NUMBERS = ("topology", "published_seconds", "seconds_by_part", "parameters", "model_flops_per_sample",
           "executed_flops_per_sample", "kernel_flops_per_sample", "kernel_efficiency", "hbm_peak_gib_per_chip",
           "collective_bytes_by_kind", "compile_seconds")


def read() -> dict[str, dict]:
    """{case: what was measured}, in the order of CASES."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {name: kept[name] for name in CASES if name in kept}


def compile_again(name: str) -> None:
    """Compiles one case and keeps it."""
    found = compiling.measure(CASES[name])
    kept = {"source": CASES[name].source, "date": datetime.date.today().isoformat(),
            **{package: importlib.metadata.version(package) for package in ("jax", "libtpu")},
            **{key: found[key] for key in NUMBERS}}
    KEPT.write_text(json.dumps(read() | {name: kept}, indent=1) + "\n")


def table(cases: dict[str, dict]) -> str:
    """Formats the cases as Markdown, and below them what was fitted."""
    rows = fit.leave_one_out(cases)
    lines = ["| program, slice | published | compiled; kernels; exchange | predicted by the others "
             "| published over predicted |", "|---|---|---|---|---|"]
    for row in rows:
        parts = "; ".join(f"{seconds:.2f}" for seconds in row.measured["seconds_by_part"].values())
        lines.append(f"| [{row.name}]({row.measured['source']}) | {row.measured['published_seconds']:.2f} s "
                     f"| {parts} s | {row.predicted:.2f} s | {row.error:.2f} |")
    spread = math.sqrt(sum((row.error - 1) ** 2 for row in rows) / len(rows))
    least, most = fit.errors(rows)
    weights = ", ".join(f"{part} {weight:.2f}" for part, weight in fit.fit(list(cases.values())).items())
    return "\n".join([*lines, "", f"Fitted to all {len(rows)}: {weights}. Errors of {least:.2f} to {most:.2f}, "
                      f"root mean square {spread:.0%}."])


def main(_) -> None:
    """The command."""
    jax.config.update("jax_enable_compilation_cache", False)  # programs for devices that are not here
    for name in CASES if ALL.value else CASE.value:
        compile_again(name)
    for name, _, path in (kept.rpartition("=") for kept in KEEP.value):
        planned.keep(name, datetime.date.today().isoformat(), json.loads(Path(path).read_text()))
    cases = read()
    print(table(cases), planned.table(), sep="\n\n")
    fitted = fit.fit(list(cases.values())), fit.errors(fit.leave_one_out(cases))
    if fitted != (calibration.WEIGHTS, calibration.ERRORS):
        print(f"\nlaunch/planning/calibration.py wants WEIGHTS = {fitted[0]} and ERRORS = {fitted[1]}")


if __name__ == "__main__":
    app.run(main)
