"""One entry per robot: what it sees, measures and does, and where that lands in the shared slots.

Adding a robot is one `register(Embodiment(...))`; nothing else in the repository lists robots.
"""

import dataclasses
import difflib
from collections.abc import Iterable

import numpy as np

from data_pipelines.normalisation import RANGES
from data_pipelines.slots import ACTION_SLOTS, DUAL_ARM_SLOTS, STATE_SLOTS
from data_pipelines.views import VIEW_LAYOUTS


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One number of a robot's state or action, in the robot's units."""

    name: str
    slot: int  # in data_pipelines.slots
    relative_to: str | None = None  # action only: predicted minus this state dimension at the block's start
    constant: bool = False  # never moves in the data; maps to 0 instead of being an error


@dataclasses.dataclass(frozen=True)
class Embodiment:
    """Everything the pipeline knows about one robot (or about video without a robot)."""

    name: str
    id: int  # in batch["embodiment_id"]
    views: tuple[str, ...]  # camera names in tiling order
    view_layout: str  # key of data_pipelines.views.VIEW_LAYOUTS
    rate: float  # control steps per second; video at another rate is read at the nearest frames
    state: tuple[Dimension, ...] = ()
    action: tuple[Dimension, ...] = ()
    normalisation: str = "quantile"  # key of data_pipelines.normalisation.RANGES
    prompt: str = "{instruction}"

    def __post_init__(self):
        _check_known(f"embodiment {self.name!r}: view_layout", self.view_layout, VIEW_LAYOUTS)
        _check_known(f"embodiment {self.name!r}: normalisation", self.normalisation, RANGES)
        if not self.rate > 0 or not self.views or "{instruction}" not in self.prompt:
            raise ValueError(f"embodiment {self.name!r} needs rate > 0, at least one view and a prompt with "
                             f"'{{instruction}}'; found {self.rate}, {self.views}, {self.prompt!r}")
        for part, dims in (("state", self.state), ("action", self.action)):
            for what, values in (("slot", [d.slot for d in dims]), ("name", [d.name for d in dims])):
                twice = sorted({v for v in values if values.count(v) > 1})
                if twice:
                    raise ValueError(f"embodiment {self.name!r}: {part} {what} used twice: {twice}")
        for dim in self.action:
            if dim.relative_to is not None:
                _check_known(f"embodiment {self.name!r}: action {dim.name!r} relative_to", dim.relative_to,
                             [d.name for d in self.state])

    @property
    def state_slots(self) -> np.ndarray:
        """int64 [state dims]."""
        return np.array([d.slot for d in self.state], np.int64)

    @property
    def action_slots(self) -> np.ndarray:
        """int64 [action dims]."""
        return np.array([d.slot for d in self.action], np.int64)


EMBODIMENTS: dict[str, Embodiment] = {}


def register(embodiment: Embodiment) -> Embodiment:
    """Adds a robot; raises ValueError where its name or id is taken."""
    for other in EMBODIMENTS.values():
        if other.name == embodiment.name or other.id == embodiment.id:
            raise ValueError(f"embodiment {embodiment.name!r} (id {embodiment.id}) collides with "
                             f"{other.name!r} (id {other.id}); names and ids are unique")
    EMBODIMENTS[embodiment.name] = embodiment
    return embodiment


def get_embodiment(name: str) -> Embodiment:
    """The registered robot of that name; raises ValueError naming the nearest."""
    _check_known("embodiment", name, EMBODIMENTS)
    return EMBODIMENTS[name]


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} = {name!r} is unknown{hint} Known: {sorted(known)}")


_arm, _arm_state = ACTION_SLOTS["left_arm"], STATE_SLOTS["left_arm"]

register(Embodiment(
    # gym-pusht: a disc pushes a T on a 512 x 512 table; the action is a target position of the disc, in pixels,
    # absolute as in the published PushT datasets
    name="pusht", id=1, views=("image",), view_layout="single", rate=10.0,
    state=(Dimension("agent_x", _arm_state[0]), Dimension("agent_y", _arm_state[1])),
    action=(Dimension("target_x", _arm[0]), Dimension("target_y", _arm[1]))))

register(Embodiment(
    # clips without a robot, resampled to PushT's rate; for other mixtures dataclasses.replace(..., rate=...)
    name="video_only", id=0, views=("image",), view_layout="single", rate=10.0))

_POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
_arm_dimensions = lambda side: (
    *(Dimension(f"{side}_{name}", slot) for name, slot in zip(_POSE, DUAL_ARM_SLOTS[f"{side}_pose"], strict=True)),
    Dimension(f"{side}_gripper", DUAL_ARM_SLOTS[f"{side}_gripper"][0]))

register(Embodiment(
    # RoboTwin as LingBot-VA uses it: end-effector poses of two arms, in the order left pose, left gripper, right pose,
    # right gripper; no state, the actions' history stands for it. Making poses relative to a segment's first one is
    # the source's business.
    name="robotwin_dual_arm", id=20, views=("head", "left_wrist", "right_wrist"), view_layout="t_shape", rate=50.0,
    action=_arm_dimensions("left") + _arm_dimensions("right")))
