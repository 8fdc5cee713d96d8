"""The datasets of a config and their weights: groups inside groups, schedules, sizes.

An entry of data.datasets is a dataset, as {"source", "path", "embodiment", "weight", ...}, or a group of them:

    robots = {"weight": 3.0, "datasets": {"droid": {..., "weight": 2.0}, "bridge": {..., "weight": 1.0}}}
    clips = {..., "weight": ((0, 1.0), (10_000, 0.25))}    # from step 10,000 on a quarter of it

`share = 0.1` trains on a tenth of a dataset's recordings, the same at every start; what is held out stays.
A group takes its weight's share, whatever it holds; inside, its members share by theirs. Only the outermost weights may
change over steps. data.size_exponent multiplies every dataset's weight by its number of windows to that power: 1 / T of
a temperature T. With data.unit = "tokens", sizes and shares are those of tokens: a window that is short, or has no
actions, counts less and is drawn more often.
"""

import numpy as np

from data_pipelines.dataset import Dataset, Weight, index_windows
from data_pipelines.windows import frame_steps
from world_model.batch import Layout

REQUIRED = ("source", "path", "embodiment", "weight")  # keys of every dataset's entry


def entries(datasets) -> dict:
    """{name: entry} of every dataset, those in groups too. Raises ValueError where a name comes twice, or an entry is
    no map."""
    found = {}
    for name, entry in datasets.items():
        if not hasattr(entry, "items"):
            raise ValueError(f"dataset {name!r} is {entry!r}: expected a map of {', '.join(REQUIRED)} and more")
        inner = entries(entry.datasets) if "datasets" in entry else {name: entry}
        if twice := sorted(found.keys() & inner.keys()):
            raise ValueError(f"dataset {twice[0]!r} is in the mixture twice")
        found |= inner
    return found


def check_entry(name: str, entry) -> None:
    """Raises ValueError where a dataset's entry lacks a key that every one has."""
    if missing := [key for key in REQUIRED if key not in entry]:
        raise ValueError(f"dataset {name!r}: its entry in data.datasets has no {missing[0]!r}; every one has "
                         f"{', '.join(REQUIRED)} (docs/data.md)")


def weights(datasets, windows: dict[str, int], exponent: float, tokens: dict[str, float] | None = None
            ) -> dict[str, Weight]:
    """{dataset: weight of its draws}. windows: of each dataset; tokens: of a window of each, where those count.
    Raises ValueError where a weight inside a group changes."""
    each = tokens or dict.fromkeys(windows, 1.0)
    shares = _shares(datasets, {name: count * each[name] for name, count in windows.items()}, exponent)
    return {name: _times(share, 1 / each[name]) for name, share in shares.items()}


def tokens_of(dataset: Dataset, layout: Layout, tokens_per_frame: int) -> float:
    """Tokens of a window, on average: of latent frames that hold a recorded one, of actions and states."""
    windows, robot = index_windows(dataset, layout), dataset.embodiment
    lengths, rates = (np.asarray(x)[windows.episode] for x in (dataset.source.lengths(), dataset.source.rates()))
    ratio = (rates / robot.rate)[:, None]
    steps = frame_steps(layout, windows.first[:, None], ratio)  # [rows, T]; only an episode's first window may be short
    first = np.r_[0, 1:layout.frames:layout.temporal_stride]  # raw frames with which latent ones begin
    frames = steps[:, first] < lengths[:, None]
    count = tokens_per_frame * frames.sum(1).astype(np.float64)
    if robot.action:
        count += np.clip(lengths - 1 - windows.first, 0, layout.num_actions)
    if robot.state:
        count += layout.num_states
    return float(np.average(count, weights=np.diff(windows.ends, prepend=0)))


def _shares(datasets, sizes: dict[str, float], exponent: float) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for name, entry in datasets.items():
        if "datasets" not in entry:
            found[name] = _times(entry.weight, sizes[name] ** exponent)
            continue
        inside: dict[str, float] = {}
        for each, weight in _shares(entry.datasets, sizes, exponent).items():
            if not isinstance(weight, (int, float)):
                raise ValueError(f"dataset {each!r}: its weight in group {name!r} changes over steps; let the group's "
                                 "change")
            inside[each] = weight
        total = sum(inside.values())
        if not total > 0:
            raise ValueError(f"data.datasets.{name}: the weights in this group add up to {total}")
        found |= {each: _times(entry.weight, weight / total) for each, weight in inside.items()}
    return found


def _times(weight: Weight, factor: float) -> Weight:
    if isinstance(weight, (int, float)):
        return weight * factor
    return tuple((step, value * factor) for step, value in weight)
