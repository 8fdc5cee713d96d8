"""An export in somebody's checkout of the original project: does it load whole, and compute and answer the same?"""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from launch.exporting import exported
from launch.serving.servable import choose_robot
from launch.setup.experiment import Experiment
from launch.setup.restore import restored_config
from world_model.weights.comparison import max_difference

CANVAS = 2.0  # grey levels, on average, between two ways of resizing a picture


def check(directory: Path | str, checkout: Path | str, python: str, tolerance: float,
          embodiment: str | None = None, dataset: str | None = None) -> dict:
    """What `launch.export --check=original` prints: per entry the largest difference (of the canvas the mean, in grey
    levels), what was left out, and whether all is within the tolerance. python: an interpreter with the original's
    packages. embodiment, dataset: the robot that is served, where the run knows several.

    A family's `original` gets the export, the checkout, python, the Experiment and a function that makes the Robot.
    Raises MissingPart where the family has no original here, ValueError where the original refuses.
    """
    provenance, statistics = exported.read_provenance(Path(directory)), exported.read_statistics(Path(directory))
    experiment = Experiment(restored_config(provenance["config"], f"{directory}/provenance.json: config"))
    run = experiment.family.part("original", "launch.export --check=original")
    served = SimpleNamespace(statistics=statistics, experiment=experiment)
    comparison = run(Path(directory), Path(checkout), python, experiment,
                     functools.partial(choose_robot, served, embodiment, dataset))
    found = {}
    for name, (ours, original) in comparison.entries.items():
        picture = name.endswith("/canvas")
        found[name] = float(np.abs(ours - original).mean()) if picture else max_difference(name, ours, original).size
    above = [name for name, size in found.items() if not size <= (CANVAS if name.endswith("/canvas") else tolerance)]
    return {"entries": found, "left": dict(comparison.unmatched), "otherwise": list(comparison.deviations),
            "above": above, "passed": not above and not comparison.unmatched}
