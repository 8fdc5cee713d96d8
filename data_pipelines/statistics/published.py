"""Compares counted statistics with those that a dataset publishes."""

import numpy as np

from data_pipelines.dataset import Dataset

# How far the counted numbers may be off the published ones, which count held-out recordings too.
MEAN_TOLERANCE = 0.5  # share of the published standard deviation
RANGE_TOLERANCE = 1e-3  # share of the published range


def against_published(dataset: Dataset, statistics: dict) -> list[str]:
    """Sentences on the dimensions in which the counted statistics are not those of the dataset's own meta/stats.json:
    one of the two is of another version, or partial. Empty where they agree or nothing is published."""
    read, sentences = getattr(dataset.source, "published", None), []
    for part, dims in (("state", dataset.embodiment.state), ("action", dataset.embodiment.action)):
        published = read(part) if read and dims else {}
        if not published:
            continue
        if wrong := [name for name, values in published.items() if values.shape != (len(dims),)]:
            raise ValueError(f"dataset {dataset.name!r}: meta/stats.json has {len(published[wrong[0]])} dimensions of "
                             f"{part} ({wrong[0]}), {dataset.embodiment.name} {len(dims)}")
        counted = statistics[part]
        if part == "action" and statistics["absolute_action"]:
            counted = statistics["absolute_action"]
        sentences += [f"{part} {dim.name}: {difference}" for i, dim in enumerate(dims)
                      if (difference := _difference(counted, published, i))]
    return sentences


def _difference(counted: dict, published: dict, i: int) -> str:
    """How dimension i of two statistics differs, in words; empty within the tolerances."""
    mean, low, high = (counted[name][i] for name in ("mean", "min", "max"))
    stated = {name: values[i] for name, values in published.items() if np.isfinite(values[i])}
    if {"min", "max"} <= stated.keys():
        room = RANGE_TOLERANCE * max(stated["max"] - stated["min"], 1e-6)
        if low < stated["min"] - room or high > stated["max"] + room:
            return f"{low:.4g} to {high:.4g}, meta/stats.json says {stated['min']:.4g} to {stated['max']:.4g}"
    if {"mean", "std"} <= stated.keys() and abs(mean - stated["mean"]) / max(stated["std"], 1e-6) > MEAN_TOLERANCE:
        return f"mean {mean:.4g}, meta/stats.json says {stated['mean']:.4g} +- {stated['std']:.4g}"
    return ""
