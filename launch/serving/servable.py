"""What can be served, and the robot that it drives."""

from typing import Protocol

import numpy as np

from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.robots.robot import Robot
from launch.setup.experiment import Experiment
from world_model.families.base.policy import Policy


class Servable(Protocol):
    """What is served: a checkpoint (restore.Restored) or an export (exported.Exported)."""

    @property
    def experiment(self) -> Experiment:
        """Config and model."""

    @property
    def step(self) -> int:
        """The training step of the weights."""

    @property
    def statistics(self) -> dict:
        """{dataset: its statistics}."""

    def policy(self, sessions: int, channels: np.ndarray, batch_sizes: tuple[int, ...], **sampling) -> Policy:
        """See restore.Restored."""


def choose_robot(model: Servable, embodiment: str | None, dataset: str | None) -> Robot:
    """The robot that a model knows how to drive; both names may be None where only one fits, or one normalisation.

    Raises ValueError naming what there is.
    """
    known = {name: s["embodiment"] for name, s in model.statistics.items() if s["action"]}
    fits = {name: robot for name, robot in known.items()
            if embodiment in (None, robot) and dataset in (None, name)}
    if not fits:
        raise ValueError(f"the checkpoint was not trained on embodiment {embodiment or 'any'}, dataset "
                         f"{dataset or 'any'}: it knows {_listed(known) or 'no robot at all'}")
    name = next(iter(fits))
    if any(model.statistics[other] != model.statistics[name] for other in fits):  # data.statistics_per = "embodiment"
        flag = "--dataset" if len(set(fits.values())) == 1 else "--embodiment"
        raise ValueError(f"the checkpoint knows {_listed(fits)}: choose one with {flag}")
    robot, experiment = get_embodiment(fits[name]), model.experiment
    sizes = experiment.model.spec
    for part, slots, size in (("action", robot.action_slots, sizes.action_dim),
                              ("state", robot.state_slots, sizes.state_dim)):
        if slots.max(initial=-1) >= size:
            raise ValueError(f"embodiment {robot.name!r} has its {part} in slots up to {slots.max()}, the checkpoint's "
                             f"model.{part}_dim = {size} has slots 0 to {size - 1}: it was trained on another robot")
    views = experiment.inputs.batch_fields().get("views")
    return Robot(robot, model.statistics[name], experiment.layout, sizes.state_dim, experiment.augmentation,
                 num_views=views[0][0] if views else 0)


def _listed(robots: dict[str, str]) -> str:
    return ", ".join(f"{robot!r} (dataset {name!r})" for name, robot in sorted(robots.items()))
