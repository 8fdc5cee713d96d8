"""Metrics of a run: what the steps give and how fast they are; records.py writes them.

Metric names that end in "/sum" and "/count" are the two parts of a mean (such as the loss at a noise level that few
samples hit): each is summed over the steps of a line, and their ratio is logged, or nothing where the count is 0.
Other metrics are averaged.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax

from world_model.analysis.chips import peak_flops

Batch = TypeVar("Batch")


class NonFiniteLoss(RuntimeError):
    """Raised where the loss or the gradient norm of a step is NaN or infinite."""


class History:
    """Metrics of the steps, kept on the device until a line is due and then fetched all at once.

    Nothing blocks between lines, yet every single step is checked for a loss that is not finite.
    """

    def __init__(self):
        self._pending: list[tuple[int, dict, Callable[[], str]]] = []

    def add(self, step: int, metrics: dict[str, jax.Array], samples: Callable[[], str]) -> None:
        """Keeps one step's metrics. `step` counts from 1; `samples` names the batch's samples, should it be needed."""
        self._pending.append((step, metrics, samples))

    def collect(self, step: int) -> dict[str, float]:
        """Reduces the steps up to `step` that were not collected before to one record; {} without any.

        Waits until `step` has ended. Raises NonFiniteLoss naming the first bad step and its samples.
        """
        due = [entry for entry in self._pending if entry[0] <= step]
        self._pending = [entry for entry in self._pending if entry[0] > step]
        fetched = jax.device_get([metrics for _, metrics, _ in due])
        for (number, _, samples), metrics in zip(due, fetched):
            for name in ("loss", "grad_norm"):
                if not math.isfinite(metrics[name]):
                    raise NonFiniteLoss(f"{name} is {metrics[name]} at step {number}, samples {samples()}")
        return reduce(fetched)


def reduce(steps: list[dict]) -> dict[str, float]:
    """Reduces the metrics of several steps to one record: means, and ratios of "/sum" to "/count"."""
    totals = {name: sum(float(step[name]) for step in steps) for name in (steps[0] if steps else {})}
    record = {}
    for name, total in totals.items():
        if name.endswith("/sum") and name[:-4] + "/count" in totals:
            if totals[name[:-4] + "/count"]:
                record[name[:-4]] = total / totals[name[:-4] + "/count"]
        elif not (name.endswith("/count") and name[:-6] + "/sum" in totals):
            record[name] = total / len(steps)
    return record


class Clock:
    """Meter of speed, and of the share of time in which the devices stand still because the next batch is late.

    Waiting in the loader while the devices still compute costs nothing and does not count: a thread notes when each
    step ends, and only the time from then (or from asking, if later) until the batch arrives is waiting.
    """

    def __init__(self, batch_size: int, flops_per_sample: float, devices: int, now=time.monotonic):
        self._batch_size, self._flops, self._devices = batch_size, flops_per_sample, devices
        self._now, self._pool = now, ThreadPoolExecutor(1)
        self._steps: list[tuple[int, float, Future]] = []  # (step, seconds waited before it, its end), not measured yet
        self._running: Future | None = None  # the end of the newest step
        self.restart()

    def restart(self) -> None:
        """Forgets the time so far, such as that of compilation, and measures from now on."""
        self._start, self._waited = self._now(), 0.0

    def next_batch(self, loader: Iterator[Batch]) -> Batch:
        """Returns next(loader) and notes how long the devices waited for it."""
        asked = self._now()
        batch = next(loader)
        if self._running is None:
            self._waited = self._now() - asked
        else:
            self._waited = max(0.0, self._now() - max(asked, self._running.result())) if self._running.done() else 0.0
        return batch

    def started(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Notes a dispatched step; waits for the one before it, so that at most two are under way."""
        before, self._running = self._running, self._pool.submit(self._ended, metrics["loss"])
        self._steps.append((step, self._waited, self._running))
        if before:
            before.result()

    def _ended(self, array: jax.Array) -> float:
        array.block_until_ready()
        return self._now()

    def measure(self, step: int, steps_left: int) -> dict[str, float]:
        """Measures the steps since the last call up to `step`, until the moment when it ended.

        Returns samples/s, model TFLOP/s per device, MFU (where the peak is known), share of data_wait, seconds left;
        {} without any step.
        """
        due = [entry for entry in self._steps if entry[0] <= step]
        if not due:
            return {}
        self._steps = self._steps[len(due):]
        before, self._start = self._start, due[-1][2].result()
        seconds = max(self._start - before, 1e-9)
        rate = len(due) * self._batch_size / seconds
        per_device = rate * self._flops / self._devices
        record = {"samples_per_second": rate, "tflops_per_device": per_device / 1e12,
                  "data_wait": sum(waited for _, waited, _ in due) / seconds,
                  "seconds_left": steps_left * seconds / len(due)}
        if peak := peak_flops(jax.devices()[0].device_kind):
            record["mfu"] = per_device / peak
        return record


def progress(step: int, steps: int, record: dict[str, float], held_out: dict[str, float]) -> str:
    """Formats one record as a line for the terminal, with the newest held-out figures."""
    parts = [f"step {step}/{steps}"]
    for name, label, form in (
        ("video_loss", "video", "{:.4f}"), ("action_loss", "action", "{:.4f}"), ("loss", "loss", "{:.4f}"),
        ("grad_norm", "grad", "{:.3f}"), ("samples_per_second", "samples/s", "{:.2f}"),
        ("tflops_per_device", "TFLOP/s/device", "{:.3g}"), ("mfu", "MFU", "{:.1%}"),
        ("data_wait", "data wait", "{:.1%}"),
    ):
        if name in record:
            parts.append(f"{label} {form.format(record[name])}")
    for name, label, form in (("held_out/video_loss", "held-out video", "{:.4f}"),
                              ("held_out/action_loss", "action", "{:.4f}"),
                              ("rollout/video_psnr_db", "rolled out", "{:.1f} dB")):
        if name in held_out:
            parts.append(f"{label} {form.format(held_out[name])}")
    if "seconds_left" in record:
        left = int(record["seconds_left"])
        parts.append(f"left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}")
    return "  ".join(parts)
