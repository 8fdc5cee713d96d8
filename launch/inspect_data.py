"""What is in a config's mixture, as one self-contained page (extra: report); nothing is trained.

    python -m launch.inspect_data --config=configs/quickstart.py --out=data.html [--episodes=20]
        [--benchmark [--topology=v5p:4x4x4 [--slices=2]]]

Per dataset: episodes, hours, rates, dimensions, languages, asked and realised shares, actions before and after
normalisation, cameras that are frozen or duplicates of another, drift of time stamps, unreadable recordings among the
sampled, windows as pictures; and of how many episodes a batch is. --benchmark also runs the loader alone: windows per
second, the share of decoding, the step time that it can feed and, with --topology, what that slice would ask of each of
its hosts (launch/plan.py).
"""

import collections
import html
import itertools
import unicodedata
from pathlib import Path

import numpy as np
from absl import flags

from data_pipelines.dataset import Dataset
from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.mixture import asked_fractions, realised_fractions
from data_pipelines.samples import SampleMaker, check_episode, relative_actions
from data_pipelines.storage import files
from launch.reporting import report_page
from launch.reporting.data_speed import diversity, speed
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment

SAME = 1.0  # mean difference of two pictures, of 255, below which they count as the same


def camera_faults(frames: dict[str, np.ndarray]) -> list[str]:
    """Sentences on cameras that stand still or show what another shows; frames: view -> uint8 [n, H, W, 3]."""
    def mean_difference(a, b):
        return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())
    found = [f"camera {view!r} is frozen" for view, pictures in frames.items()
             if len(pictures) > 1 and mean_difference(pictures[1:], pictures[:1]) < SAME / 10]
    for (a, one), (b, other) in itertools.combinations(frames.items(), 2):
        if one.shape == other.shape and mean_difference(one, other) < SAME:
            found.append(f"cameras {a!r} and {b!r} show the same")
    return found


def sampled_episodes(dataset: Dataset, episodes: np.ndarray, count: int) -> tuple[list[Episode], list[str]]:
    """(readable episodes spread over the dataset, why others are not)."""
    good, problems = [], []
    for index in episodes[np.unique(np.linspace(0, len(episodes) - 1, count).astype(int))].tolist():
        try:
            episode = dataset.source[index]
            check_episode(episode, dataset.embodiment)
            good.append(episode)
        except BadEpisode as error:
            problems.append(str(error))
    return good, problems


def faults_of(episodes: list[Episode]) -> list[str]:
    """Camera faults, time stamps that do not fit and unreadable video, from five frames of each episode, with how many
    episodes have them."""
    counted = collections.Counter()
    for episode in episodes:
        try:
            counted.update(episode.disagreements())
            counted.update(camera_faults(episode.read_frames(np.linspace(0, episode.length - 1, 5).astype(int))))
        except BadEpisode as error:
            counted[str(error)] += 1
    return [f"{fault}, in {count} of {len(episodes)} sampled episodes" for fault, count in counted.most_common(20)]


def facts(maker: SampleMaker, episodes: list[Episode], asked: float, realised: float) -> list[list[str]]:
    """Rows of a table about one dataset."""
    dataset = maker.dataset
    chosen = maker.windows.episodes
    lengths, rates = (np.asarray(values)[chosen] for values in (dataset.source.lengths(), dataset.source.rates()))
    texts = collections.Counter(text for episode in episodes for text in said_in(episode))
    shown = "; ".join(html.escape(repr(text)) for text, _ in texts.most_common(5))
    robot = dataset.embodiment
    return [["robot", f"{html.escape(robot.name)}, {len(robot.state)} state and {len(robot.action)} action dimensions"],
            ["training episodes", f"{len(chosen):,}; {lengths.min()} to {lengths.max()} steps, median "
                                  f"{int(np.median(lengths))}"],
            ["hours", f"{float((lengths / rates).sum()) / 3600:.2f}"],
            ["recorded rates", ", ".join(f"{rate:g} Hz" for rate in sorted(set(rates.tolist()))[:8])],
            ["windows", f"{len(maker.windows):,}, every {dataset.window_stride} steps"],
            ["share asked, realised", f"{asked:.2%}, {realised:.2%}"],
            ["instructions", f"{len(texts)} among {len(episodes)} sampled episodes, {texts['']} without; in "
                             f"{', '.join(scripts(texts)) or 'no'} letters: {shown}"],
            ["time stamps", drift(episodes)]]


def said_in(episode: Episode) -> set[str]:
    """The instructions that hold somewhere in an episode."""
    return {text for _, text in episode.instructions if isinstance(text, str)} or {episode.instruction}


def scripts(texts) -> list[str]:
    """The alphabets in which texts are written, most used first, by Unicode's names of their letters."""
    letters = collections.Counter(letter for text in texts for letter in text if letter.isalpha())
    found = collections.Counter()
    for letter, count in letters.items():
        found[unicodedata.name(letter, "unknown").split()[0].title()] += count
    return [name for name, _ in found.most_common()]


def drift(episodes: list[Episode]) -> str:
    """How far recorded times are off an even rate."""
    known = [(episode.drift, episode.drift * episode.rate) for episode in episodes if episode.drift is not None]
    if not known:
        return "none recorded: steps count as even"
    seconds, steps = max(known)
    return f"at most {1000 * seconds:.2f} ms off an even rate, {steps:.1%} of a step (half a step is refused)"


def action_histograms(dataset: Dataset, maker: SampleMaker, episodes: list[Episode]) -> bytes:
    """SVG of the sampled episodes' actions."""
    from launch.reporting import data_figures

    block = maker.layout.actions_per_block
    before, after = [], []
    for episode in episodes:
        values, real = relative_actions(episode, np.arange(0, episode.length, block), block, dataset.embodiment)
        real &= np.isfinite(values).all(-1)
        before.append(values[real])
        after.append(maker.scale("action").normalise(values)[real])
    return data_figures.histograms([d.name for d in dataset.embodiment.action], np.concatenate(before),
                                   np.concatenate(after))


def pictures(maker: SampleMaker, count: int = 3) -> tuple[bytes | None, list[str]]:
    """(PNG of windows spread over the dataset, why others cannot be made); None where none can."""
    from launch.reporting import data_figures

    strips, problems = [], []
    for window in np.linspace(0, len(maker.windows) - 1, count).astype(int).tolist():
        try:
            strips.append(data_figures.pictures(maker(window, 0)))
        except BadEpisode as error:
            problems.append(str(error))
    return data_figures.filmstrip(strips) if strips else None, problems


def section(maker: SampleMaker, count: int, asked: float, realised: float) -> tuple[str, list[str]]:
    """(HTML, problems) of one dataset."""
    dataset = maker.dataset
    episodes, problems = sampled_episodes(dataset, maker.windows.episodes, count)
    problems += faults_of(episodes)
    strip, unmade = pictures(maker)
    problems += [problem for problem in unmade if not any(problem in known for known in problems)]
    parts = [report_page.table(["", ""], facts(maker, episodes, asked, realised))] if episodes else []
    parts += [f'<p class="missed">{html.escape(problem)}</p>' for problem in problems]
    if strip:
        parts.append(report_page.image(strip, "png", "sample windows", "Three windows, five frames each.", pixels=True))
    if dataset.embodiment.action and episodes:
        parts.append(report_page.image(action_histograms(dataset, maker, episodes), "svg+xml", "actions",
                                       f"Actions of {len(episodes)} episodes."))
    return report_page.section(dataset.name, *parts), problems


def demand(config, topology: str, slices: int, rate: float) -> str:
    """A sentence on what a slice would ask of each host, beside this one's `rate`, windows per second."""
    from launch import plan

    planned = plan.plan(config, topology, slices)
    hosts = len({device.process_index for device in plan.describe_topology(topology, slices)[1]})
    needed = planned["global_batch"] / planned["step_seconds"]
    verdict = "enough" if rate >= needed / hosts else "too little: use data.cache, more cores or data.workers"
    return (f"{slices} x {topology} would take a step of {planned['step_seconds']:.2f} s ({planned['run']}) "
            f"and so {needed:.2f} windows per second, {needed / hosts:.2f} on each of its {hosts} hosts; "
            f"this host's loader makes {rate:.2f}: {verdict}.")


def main(_) -> None:
    config, out = flags.FLAGS.config, Path(flags.FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    data = Experiment(config).data()
    steps, batch = config.train.steps, config.train.global_batch_size
    asked = asked_fractions({d.name: d.weight for d in data.training}, steps)
    realised = realised_fractions(data.training, steps * batch, batch)
    makers = data.makers()
    found = [section(maker, flags.FLAGS.episodes, asked[maker.dataset.name], realised[maker.dataset.name])
             for maker in makers]
    rate, lines = speed(data) if flags.FLAGS.benchmark else (0.0, [])
    if flags.FLAGS.topology:
        lines.append(demand(config, flags.FLAGS.topology, flags.FLAGS.slices, rate))
    head = [report_page.section("Speed", *map(report_page.text, lines))] if lines else []
    lead = f"{len(data.training)} datasets, {steps * batch:,} windows are drawn. {diversity(data, makers)}"
    files.write_text(str(out), report_page.page("The data of a run", lead,
                                                [*head, *(html_of for html_of, _ in found)]))
    for line in (*lines, *(problem for _, problems in found for problem in problems)):
        print(line)
    print(f"written to {out}")


if __name__ == "__main__":
    launch_flags.define_config()
    flags.DEFINE_string("out", "data.html", "page to write")
    flags.DEFINE_integer("episodes", 20, "episodes of a dataset that are looked at", lower_bound=1)
    flags.DEFINE_bool("benchmark", False, "also measure the loader alone, for ten seconds")
    flags.DEFINE_string("topology", "", "with --benchmark: chip generation and slice shape, as v5p:4x4x4")
    flags.DEFINE_integer("slices", 1, "slices of that shape")
    flags.mark_flags_as_required(["config"])
    launch_flags.run(main, RuntimeError)
