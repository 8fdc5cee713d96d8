"""The datasets of a config and their weights: groups inside groups, schedules, sizes.

An entry of data.datasets is a dataset, as {"source", "path", "embodiment", "weight", ...}, or a group of them:

    robots = {"weight": 3.0, "datasets": {"droid": {..., "weight": 2.0}, "bridge": {..., "weight": 1.0}}}
    clips = {..., "weight": ((0, 1.0), (10_000, 0.25))}    # from step 10,000 on a quarter of it

A group takes its weight's share, whatever it holds; inside, its members share by theirs. Only the outermost weights may
change over steps. data.size_exponent multiplies every dataset's weight by its number of windows to that power.
"""

from data_pipelines.samples import Weight


def entries(datasets) -> dict:
    """{name: entry} of every dataset, those in groups too. Raises ValueError where a name comes twice."""
    found = {}
    for name, entry in datasets.items():
        inner = entries(entry.datasets) if "datasets" in entry else {name: entry}
        if twice := sorted(found.keys() & inner.keys()):
            raise ValueError(f"dataset {twice[0]!r} is in the mixture twice")
        found |= inner
    return found


def weights(datasets, sizes: dict[str, int], exponent: float) -> dict[str, Weight]:
    """{dataset: weight}. sizes: windows of each dataset. Raises ValueError where a weight inside a group changes."""
    found: dict[str, Weight] = {}
    for name, entry in datasets.items():
        if "datasets" not in entry:
            found[name] = _times(entry.weight, sizes[name] ** exponent)
            continue
        inside = weights(entry.datasets, sizes, exponent)
        if changing := [each for each, weight in inside.items() if not isinstance(weight, (int, float))]:
            raise ValueError(f"dataset {changing[0]!r}: its weight in group {name!r} changes over steps; let the "
                             f"group's change")
        total = sum(inside.values())
        if not total > 0:
            raise ValueError(f"data.datasets.{name}: the weights in this group add up to {total}")
        found |= {each: _times(entry.weight, weight / total) for each, weight in inside.items()}
    return found


def _times(weight: Weight, factor: float) -> Weight:
    if isinstance(weight, (int, float)):
        return weight * factor
    return tuple((step, value * factor) for step, value in weight)
