"""Timing of somebody's own step beside ours, in the same run: --reference=PATH names a Python file of theirs.

The file defines

    def make_step(shape: dict, device: str):
        ...  # build the model and random inputs once
        return step

shape: the sizes that the benchmark measures, see its docstring. device: "cpu" or "cuda". step() takes one step and
returns when the device has ended it (torch.cuda.synchronize()). Both sides share a GPU: give JAX its part with
XLA_PYTHON_CLIENT_MEM_FRACTION, or XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jax

NOT_TIMED = 2  # steps that compile, allocate and warm up


def load_step(path: str, shape: dict) -> Callable[[], None]:
    """Makes the step of a file, for the platform that JAX runs on. Raises ValueError where the file has none."""
    if not Path(path).is_file():
        raise ValueError(f"--reference={path}: no such file")
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "make_step", None)):
        raise ValueError(f"--reference={path} defines no make_step(shape, device); see benchmarks/reference.py")
    return module.make_step(shape, {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend()))


def alternate(repeats: int, *steps: Callable[[], None]) -> list[list[float]]:
    """Times `repeats` calls of each step in seconds, in turn, so that whatever else the machine does slows all."""
    times = [[] for _ in steps]
    for _ in range(repeats + NOT_TIMED):
        for step, taken in zip(steps, times, strict=True):
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
    return [taken[NOT_TIMED:] for taken in times]


def compare(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Makes the JSON line's part about the reference; times_as_fast is above 1 where we are faster."""
    return {"reference_median_seconds": median(theirs), "reference_best_seconds": min(theirs),
            "times_as_fast": median(theirs) / median(ours)}
