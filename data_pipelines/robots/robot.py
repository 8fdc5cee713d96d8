"""A robot at run time: what it measures into what the model takes, and back into commands.

The same transforms as in training (`samples.SampleMaker`), for one observation in place of a recording.
"""

import dataclasses

import numpy as np

from data_pipelines.augmentation import PLAIN, Augmentation
from data_pipelines.robots.embodiment import Embodiment
from data_pipelines.robots.normalisation import Scale, make_scale, to_relative, to_robot_units
from data_pipelines.robots.slots import scatter
from data_pipelines.robots.views import VIEW_LAYOUTS, separate_views, view_mask
from world_model.batch import Layout


@dataclasses.dataclass(frozen=True, eq=False)
class Robot:
    """An embodiment under the statistics that a model was trained with."""

    embodiment: Embodiment
    statistics: dict  # one dataset's: data_pipelines.statistics
    layout: Layout
    state_dim: int  # slots of the model's state
    augmentation: Augmentation = PLAIN  # the training run's; a robot's pictures are cut at the centre of its crop
    num_views: int = 0  # V of a model that takes the views apart; 0 where it takes the canvas

    def __post_init__(self):
        """Raises ValueError where the robot cannot be driven by a model of these sizes."""
        if not self.embodiment.action:
            raise ValueError(f"embodiment {self.embodiment.name!r} has no action: nothing to drive")
        if self.embodiment.state and self.layout.states_per_block != 1:
            raise ValueError(f"layout.states_per_block = {self.layout.states_per_block}: a policy knows the state at "
                             "a block's start alone, 1 per block")
        found = self.statistics["actions_per_block"]
        if found != self.layout.actions_per_block:
            raise ValueError(f"statistics of dataset {self.statistics['dataset']!r} are those of actions_per_block = "
                             f"{found}, the layout has {self.layout.actions_per_block}")
        for part in ("state", "action"):
            if getattr(self.embodiment, part):
                self.scale(part)  # raises now where statistics are missing
        if self.num_views:
            self.embodiment.check_views(self.num_views)

    @property
    def horizon(self) -> int:
        """The number of a block's actions that can be executed."""
        return self.embodiment.learned_steps(self.layout.actions_per_block)

    def scale(self, part: str) -> Scale:
        """The scale by which "state" or "action" is normalised."""
        return make_scale(self.statistics, self.embodiment, part)

    def canvas(self, views: dict[str, np.ndarray]) -> np.ndarray:
        """Tiles views uint8 [n, H, W, 3] by name into what the video codec sees, uint8 [n, layout.height, layout.width,
        3]."""
        tile = VIEW_LAYOUTS[self.embodiment.view_layout]
        return tile(self._cut(views), self.layout.height, self.layout.width)

    def views(self, frames: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Turns one frame uint8 [1, H, W, 3] of each camera by name into a sample's fields "views", uint8 [V,
        layout.height, layout.width, 3], and "view_mask", bool [V]."""
        self.embodiment.check_views(self.num_views)
        cut = self._cut(frames)
        places = range(len(cut))
        pictures = separate_views(cut, places, self.num_views, self.layout.height, self.layout.width)
        return pictures, view_mask(places, self.num_views)

    def _cut(self, views: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The centre of each camera's frames, in the embodiment's order."""
        return self.augmentation.still.cut([views[name] for name in self.embodiment.views], 0, 0)

    def state(self, values: np.ndarray) -> np.ndarray:
        """Normalises a state [state dims] in robot units and puts it into slots, float32 [state_dim]."""
        if not self.embodiment.state:
            return np.zeros(self.state_dim, np.float32)
        return scatter(self.scale("state").normalise(values), self.embodiment.state_slots, self.state_dim)

    def commands(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Turns predicted actions [N, action slots] of the block that began in `state` [state dims] into commands,
        float32 [N or the embodiment's horizon, action dims], absolute, in robot units."""
        actions = actions[:self.embodiment.horizon]
        return to_robot_units(actions, state, self.embodiment, self.statistics).astype(np.float32)

    def predicted(self, commands: np.ndarray, state: np.ndarray, action_dim: int) -> np.ndarray:
        """Undoes `commands`: turns [N, action dims] into float32 [N, action_dim]."""
        relative = to_relative(np.asarray(commands, np.float64), np.asarray(state, np.float64), self.embodiment)
        return scatter(self.scale("action").normalise(relative), self.embodiment.action_slots, action_dim)

    def prompt(self, instruction: str) -> str:
        """The text that the text encoder reads."""
        return self.embodiment.format_prompt(instruction)
