"""Shows what a config makes of each robot: the canvas, the actions there and back, the prompt.

    python -m launch.check_embodiment --config=configs/quickstart.py --out=check.html [--windows=4]

One self-contained page (extra: report). Exits with an error where an action that was not clipped does not come back.
"""

import html
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from data_pipelines.dataset import Dataset
from data_pipelines.episode import BadEpisode
from data_pipelines.mixture import check_mixture
from data_pipelines.robots.normalisation import to_robot_units
from data_pipelines.samples import SampleMaker
from data_pipelines.storage import files
from data_pipelines.windows import block_starts
from launch.reporting import report_page
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment

TOLERANCE = 1e-3  # share of a dimension's range from q01 to q99; float32 keeps 1e-6 of the value


class RoundTrip(NamedTuple):
    """One window's actions, real steps alone; [steps, dims]."""

    recorded: np.ndarray  # robot units
    normalised: np.ndarray
    back: np.ndarray  # robot units again
    starts: list[int]  # where blocks begin


def round_trip(maker: SampleMaker, window: int, sample: dict) -> RoundTrip:
    """The actions of a window as recorded, as the model sees them, and as the robot would get them back."""
    dataset, block = maker.dataset, maker.layout.actions_per_block
    index, start = maker.windows[window]
    episode, robot = dataset.source[index], dataset.embodiment
    parts = []
    for i, first in enumerate(block_starts(maker.layout, start)):
        count = min(block, robot.horizon or block, episode.length - 1 - first)
        if count < 1:
            break
        rows = sample["actions"][i * block:i * block + count]
        state = np.zeros(0) if episode.state is None else episode.state[first]
        parts.append((episode.action[first:first + count], rows[:, robot.action_slots],
                      to_robot_units(rows, state, robot, dataset.statistics)))
    starts = np.cumsum([0, *(len(p[0]) for p in parts[:-1])]).tolist()
    recorded, normalised, back = (np.concatenate(column) for column in zip(*parts))
    return RoundTrip(recorded, normalised, back, starts)


def errors(dataset: Dataset, trips: list[RoundTrip]) -> list[dict]:
    """Per action dimension: the largest error of unclipped values, in shares of its range (of statistics per step the
    widest), and the share clipped."""
    found = []
    q01, q99 = (np.atleast_2d(dataset.statistics["action"][name]) for name in ("q01", "q99"))
    for i, dim in enumerate(dataset.embodiment.action):
        span = (q99 - q01)[:, i].max()
        gap = np.concatenate([np.abs(t.back[:, i] - t.recorded[:, i]) for t in trips])
        inside = np.concatenate([np.abs(t.normalised[:, i]) < 1 for t in trips])
        worst = gap[inside].max(initial=0.0)
        found.append({"name": dim.name, "slot": dim.slot, "relative_to": dim.relative_to, "error": worst,
                      "share": worst / span if span else 0.0, "clipped": 1 - inside.mean()})
    return found


def check(dataset: Dataset, maker: SampleMaker, count: int) -> tuple[str, bool]:
    """(section of HTML, everything that can be read comes back) from `count` windows spread over the dataset."""
    from launch.reporting import data_figures

    robot, frames, trips, problems, prompt = dataset.embodiment, [], [], [], ""
    for window in np.unique(np.linspace(0, len(maker.windows) - 1, count).round()).astype(int).tolist():
        try:
            sample = maker(window, 0)
        except BadEpisode as error:
            problems.append(str(error))
            continue
        frames.append(data_figures.pictures(sample))
        index, start = maker.windows[window]
        prompt = prompt or robot.format_prompt(dataset.source[index].instruction_at(start))
        if robot.action:
            trips.append(round_trip(maker, window, sample))
    parts = [report_page.text(f"Robot {robot.name!r} at {robot.rate:g} Hz; layout {robot.view_layout!r} of views "
                              f"{', '.join(robot.views)}. Prompt: {prompt!r}")]
    parts += [report_page.text(f"Unreadable: {problem}") for problem in problems]
    if frames:
        parts.append(report_page.image(data_figures.filmstrip(frames), "png", "sample windows", pixels=True,
                                       caption="What the model sees: a window per row, five of its frames or "
                                               "each of its cameras."))
    rows = errors(dataset, trips) if trips else []
    if trips:
        curves = data_figures.action_curves([d.name for d in robot.action], *trips[0])
        parts.append(report_page.image(curves, "svg+xml", "actions", "Actions of the first window."))
        parts.append(report_page.table(
            ["dimension", "slot", "relative to", "largest error, robot units", "of its range", "clipped"],
            [[html.escape(r["name"]), str(r["slot"]), r["relative_to"] or "", f"{r['error']:.2g}",
              f"{r['share']:.1e}", f"{r['clipped']:.1%}"] for r in rows]))
    return report_page.section(dataset.name, *parts), bool(frames) and all(r["share"] <= TOLERANCE for r in rows)


def main(_) -> None:
    config, out = flags.FLAGS.config, Path(flags.FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    makers = Experiment(config).data().makers()
    check_mixture([maker.dataset for maker in makers])
    found = {maker.dataset.name: check(maker.dataset, maker, flags.FLAGS.windows) for maker in makers}
    page = report_page.page("Robots and their data", "What the config makes of each dataset.",
                            [section for section, _ in found.values()])
    files.write_text(str(out), page)
    print(f"written to {out}")
    if wrong := [name for name, (_, fine) in found.items() if not fine]:
        sys.exit(f"check_embodiment: {', '.join(wrong)}: actions do not come back from normalisation, or no window can "
                 f"be read: see {out}")


if __name__ == "__main__":
    launch_flags.define_config()
    flags.DEFINE_string("out", "check.html", "page to write")
    flags.DEFINE_integer("windows", 4, "windows per dataset", lower_bound=1)
    flags.mark_flags_as_required(["config"])
    launch_flags.run(main)
