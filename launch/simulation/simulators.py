"""Tasks in simulators, each for a robot: what a trained model can act in (extra: sim)."""

import dataclasses
import importlib

from data_pipelines.simulators.tabletop import tasks as tabletop
from launch.serving.engine import Engine
from launch.serving.servable import choose_robot
from launch.setup.restore import Restored
from launch.simulation.closed_loop import Run


@dataclasses.dataclass(frozen=True)
class Task:
    """One task. Its module has a class Episode; see data_pipelines/simulators/pusht/task.py."""

    name: str
    embodiment: str
    module: str
    options: dict = dataclasses.field(default_factory=dict)  # keywords of Episode
    instruction: str = ""  # empty: that of the embodiment
    measure: str = "coverage"  # what `Episode.coverage` holds

    def make_runs(self, seeds, image_size: int, max_steps: int | None = None) -> list[Run]:
        """Makes fresh episodes. Raises ValueError where the simulator is not installed."""
        options = self.options | ({} if max_steps is None else {"max_steps": max_steps})
        try:
            episode = importlib.import_module(self.module).Episode
            return [Run(seed, episode(seed=seed, image_size=image_size, **options)) for seed in seeds]
        except ModuleNotFoundError as error:
            raise ValueError(f"the simulator of {self.name} needs {error.name!r}: pip install -e '.[sim]'") from error


TASKS = {task.name: task for task in (
    Task("pusht", "pusht", "data_pipelines.simulators.pusht.task"),
    Task("pusht-slide", "pusht", "data_pipelines.simulators.pusht.task", {"task": "slide"}),
    *(Task(name if look == "plain" else f"{name}-{look}", task.embodiment, "data_pipelines.simulators.tabletop.episode",
           {"task": name, "look": look}, task.instruction, "reward")
      for look in tabletop.LOOKS for name, task in tabletop.TASKS.items()))}


def choose_task(name: str | None, embodiments: set[str]) -> Task:
    """Finds the task of a name, or the first for a robot that the model drives.

    Raises ValueError naming what there is.
    """
    fits = {task.name: task for task in TASKS.values() if task.embodiment in embodiments}
    if name is None and fits:
        return next(iter(fits.values()))
    if name not in fits:
        asked = f"--task={name}" if name else "no task"
        raise ValueError(f"{asked}: the model drives {', '.join(sorted(embodiments)) or 'nothing'}; tasks for it are: "
                         f"{', '.join(fits) or 'none'}; all tasks: {', '.join(TASKS)}")
    return fits[name]


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A model in a task that it has a robot for."""

    restored: Restored
    task: Task
    engine: Engine

    @classmethod
    def open(cls, restored: Restored, task: str | None, sessions: int, batch_size: int, *, sampling: dict | None = None,
             forward: bool = False) -> "Simulation":
        """The task as `choose_task` has it; the others are the engine's. Raises ValueError where the model drives no
        robot that has a simulator."""
        chosen = choose_task(task, {s["embodiment"] for s in restored.statistics.values() if s["action"]})
        robot = choose_robot(restored, chosen.embodiment, None)
        engine = Engine(restored, robot, sessions, (batch_size,), sampling=sampling or {}, forward=forward)
        return cls(restored, chosen, engine)

    @property
    def instruction(self) -> str:
        """What the model is asked to do."""
        return self.task.instruction or self.engine.embodiment.instruction

    def make_runs(self, seeds, max_steps: int | None = None) -> list[Run]:
        """Fresh episodes, whose pictures are of the model's size."""
        return self.task.make_runs(seeds, self.engine.robot.layout.height, max_steps)

    def settings(self, seed: int) -> dict:
        """What a result depends on, as JSON values."""
        return {"task": self.task.name, "step": self.restored.step, "seed": seed,
                "sampling": self.restored.experiment.sampler_settings(**self.engine.sampling)}
