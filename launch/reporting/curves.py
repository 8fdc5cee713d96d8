"""Curves of runs by step, from their metrics.jsonl: training, held out, rolled out; of one run or of several."""

import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from launch.reporting import report_page
from launch.reporting.figures import BASELINE, MODEL, OTHER, TRUTH, figure
from world_model import kinds
from world_model.differences import differences
from world_model.training.records import read_records

COLOURS = (MODEL, BASELINE, "#15803d", "#b91c1c", "#7c3aed", "#0891b2", TRUTH, OTHER)
WIDTH = 3  # panels in a row
# Of what is rolled out: title -> metrics, the model's first.
ROLLED = {"rolled-out video": ("video_psnr_db", "copy_last_psnr_db", "codec_psnr_db"),
          "action error": ("model_mse", "predict_mean_mse", "repeat_last_mse")}
UNITS = {"rolled-out video": "PSNR, dB", "action error": "mean square, normalised units"}  # other panels show the loss


def plot_run(records: list[dict]) -> bytes:
    """SVG: each training loss with its held-out curves by dataset, and what is rolled out with its baselines."""
    names = {name for record in records for name in record}
    panels = {}
    for kind in ("video", "action"):
        loss = f"{kind}_loss"
        held_out = (name for name in sorted(names) if name.startswith("held_out/") and name.endswith(f"/{loss}"))
        lines = {"training": loss} | {name.split("/")[1]: name for name in held_out if name.count("/") == 2}
        panels[f"{kind} loss"] = {label: (records, name) for label, name in lines.items() if name in names}
    for title, rolled in ROLLED.items():
        panels[title] = {name.rpartition("_")[0].replace("_psnr", "").replace("_", " "): (records, f"rollout/{name}")
                         for name in rolled if f"rollout/{name}" in names}
    return _plot(panels)


def plot_runs(runs: dict[str, list[dict]]) -> bytes:
    """SVG: a panel for each loss and each rolled-out measure, a line for each run."""
    titles = {"video_loss": "training, video loss", "action_loss": "training, action loss",
              "held_out/video_loss": "held out, video loss", "held_out/action_loss": "held out, action loss",
              **{f"rollout/{names[0]}": title for title, names in ROLLED.items()}}
    return _plot({title: {run: (records, name) for run, records in runs.items() if any(name in r for r in records)}
                  for name, title in titles.items()})


def _plot(panels: dict[str, dict[str, tuple[list[dict], str]]]) -> bytes:
    """{title: {label: (records, metric)}}; panels without a line are left out."""
    shown = {title: lines for title, lines in panels.items() if lines}
    rows = -(-len(shown) // WIDTH) or 1
    with figure(rows, min(WIDTH, len(shown)) or 1, 9, 2.7 * rows) as (buffer, axes):
        for axis in axes.flat[len(shown):]:
            axis.set_axis_off()
        for axis, (title, lines) in zip(axes.flat, shown.items()):
            low = []
            for (label, (records, name)), colour in zip(lines.items(), COLOURS * 9):
                steps, values = _points(records, name)
                dense = len(values) > 40
                axis.plot(steps, values, color=colour, alpha=0.25 if dense else 1, linewidth=1 if dense else 1.8,
                          marker=None if dense else ".", label=None if dense else label)
                if dense:
                    axis.plot(steps, _smooth(values), color=colour, label=label)
                low.append((values.min(), values.max()))
            if title.endswith("loss") and min(low)[0] > 0 and max(high for _, high in low) > 5 * min(low)[0]:
                axis.set_yscale("log")
            axis.set(title=title, xlabel="training step", ylabel=UNITS.get(title, "loss"))
            axis.legend(fontsize=7)
    return buffer.getvalue()


def _points(records: list[dict], name: str) -> np.ndarray:
    """Steps and values, float [2, n]."""
    return np.array([(r["step"], r[name]) for r in records if name in r], float).T


def _smooth(values: np.ndarray) -> np.ndarray:
    """Smooths by an exponential mean over a twentieth of the run, without the bias of its start."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    out, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out[i] = total / weight
    return out


def page_so_far(workdir: Path, note: str = "") -> str:
    """A page of a run that goes on: its curves, the newest figures and the newest pictures."""
    records = read_records(workdir / "metrics.jsonl")
    if not records:
        raise ValueError(f"{workdir}/metrics.jsonl has no line yet")
    sections = [report_page.section("Curves so far", report_page.image(plot_run(records), "svg+xml", "curves by step"))]
    if newest := newest_figures(records):
        rows = [[html.escape(name), f"{step}", f"{value:.4g}"] for name, (step, value) in newest.items()]
        sections.append(report_page.section("Held out, newest", report_page.table(["measure", "step", ""], rows)))
    if pictures := sorted(workdir.glob("rollout/*.png")):
        sections.append(report_page.section(f"Rolled out after step {int(pictures[-1].stem)}", report_page.text(
            "For each window three rows: the real video through the codec, the predicted, the first frame held."),
            report_page.image(pictures[-1].read_bytes(), "png", "rolled-out video", pixels=True)))
    lead = " ".join([f"Training so far: step {records[-1]['step']}.", note]).strip()
    return report_page.page(f"World-action model: {workdir.name}", lead, sections)


def page_of_runs(workdirs: list[Path]) -> str:
    """A page that lays runs side by side: curves, newest held-out figures, and settings that differ."""
    names = [str(path) if len({w.name for w in workdirs}) < len(workdirs) else path.name for path in workdirs]
    runs = {name: read_records(path / "metrics.jsonl") for name, path in zip(names, workdirs, strict=True)}
    newest = {name: newest_figures(records) for name, records in runs.items()}
    measures = sorted({measure for found in newest.values() for measure in found})
    rows = [[html.escape(measure), *(_cell(newest[name].get(measure)) for name in names)] for measure in measures]
    sections = [report_page.section("Curves", report_page.image(plot_runs(runs), "svg+xml", "curves by step"))]
    if rows:
        sections.append(report_page.section("Held out, newest (step)", report_page.table(
            ["measure", *map(html.escape, names)], rows)))
    other = [report_page.text(line) for line in _settings(names, workdirs)]
    sections.append(report_page.section("Settings that differ", *(other or [report_page.text("None.")])))
    return report_page.page("Runs side by side", ", ".join(names), sections)


def newest_figures(records: list[dict]) -> dict[str, tuple[int, float]]:
    """{measure: (step, value)} of all that was held out or rolled out, the noise levels aside."""
    return {name: (record["step"], value) for record in records for name, value in record.items()
            if name.startswith(("held_out/", "rollout/")) and "sigma" not in name}


def _cell(found: tuple[int, float] | None) -> str:
    return "&ndash;" if found is None else f"{found[1]:.4g} ({found[0]})"


def _settings(names: list[str], workdirs: list[Path]) -> Iterator[str]:
    """How each run's config.json differs from the first's."""
    first, *others = (kinds.read(path / "config.json", kinds.MAP) for path in workdirs)
    for name, config in zip(names[1:], others, strict=True):
        yield from differences(first, config, (names[0], name))
