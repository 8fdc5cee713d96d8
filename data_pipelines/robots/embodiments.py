"""One entry per robot: what it sees, measures and does, and where that lands in the shared slots.

Adding a robot is one `register(Embodiment(...))`; nothing else in the repository lists robots.
"""

import dataclasses
import difflib
from collections.abc import Iterable

import numpy as np

from data_pipelines.robots.normalisation import RANGES
from data_pipelines.robots.slots import ACTION_SLOTS, DUAL_ARM_SLOTS, STATE_SLOTS
from data_pipelines.robots.views import VIEW_LAYOUTS


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One number of a robot's state or action, in the robot's units."""

    name: str
    slot: int  # in data_pipelines.slots
    relative_to: str | None = None  # action only: predicted minus this state dimension at the block's start
    constant: bool = False  # never moves in the data; maps to 0 instead of being an error
    # Action only, what the robot may be sent; None: anything.
    low: float | None = None
    high: float | None = None
    max_speed: float | None = None  # change of the command per second
    moves: str | None = None  # state dimension that it is a target of: commands start there, and holding means it


@dataclasses.dataclass(frozen=True)
class Embodiment:
    """Everything the pipeline knows about one robot (or about video without a robot)."""

    name: str
    id: int  # in batch["embodiment_id"]
    views: tuple[str, ...]  # camera names in tiling order
    view_layout: str  # key of data_pipelines.views.VIEW_LAYOUTS
    rate: float  # control steps per second; video at another rate is read at the nearest frames
    horizon: int | None = None  # actions of a block that are learnt and executed; None: all of them
    state: tuple[Dimension, ...] = ()
    action: tuple[Dimension, ...] = ()
    normalisation: str = "quantile"  # key of data_pipelines.normalisation.RANGES
    prompt: str = "{instruction}"
    instruction: str = ""  # what a policy is asked for where nobody says

    def __post_init__(self):
        _check_known(f"embodiment {self.name!r}: view_layout", self.view_layout, VIEW_LAYOUTS)
        _check_known(f"embodiment {self.name!r}: normalisation", self.normalisation, RANGES)
        if not self.rate > 0 or not self.views or "{instruction}" not in self.prompt:
            raise ValueError(f"embodiment {self.name!r} needs rate > 0, at least one view and a prompt with "
                             f"'{{instruction}}'; found {self.rate}, {self.views}, {self.prompt!r}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"embodiment {self.name!r}: horizon = {self.horizon}: expected at least 1 action, or None")
        for part, dims in (("state", self.state), ("action", self.action)):
            for what, values in (("slot", [d.slot for d in dims]), ("name", [d.name for d in dims])):
                twice = sorted({v for v in values if values.count(v) > 1})
                if twice:
                    raise ValueError(f"embodiment {self.name!r}: {part} {what} used twice: {twice}")
        for dim in self.action:
            if dim.relative_to is not None:
                _check_known(f"embodiment {self.name!r}: action {dim.name!r} relative_to", dim.relative_to,
                             [d.name for d in self.state])
            if dim.moves is not None:
                _check_known(f"embodiment {self.name!r}: action {dim.name!r} moves", dim.moves,
                             [d.name for d in self.state])

    def check_views(self, count: int) -> None:
        """Raises ValueError where the robot has more cameras than a model has views."""
        if len(self.views) > count:
            raise ValueError(f"embodiment {self.name!r} has {len(self.views)} cameras ({', '.join(self.views)}), but a "
                             f"sample has {count} views")

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


def _dims(slots: dict[str, range], relative: tuple[str, ...] = (), **groups: tuple) -> tuple[Dimension, ...]:
    """name=(range of slots, count[, first]) -> name_0, name_1, ... in order; the groups in `relative` are relative to
    the state dimensions of the same names."""
    found = []
    for name, (place, count, *first) in groups.items():
        for i in range(count):
            each = name if count == 1 else f"{name}_{i}"
            slot = slots[place][i + sum(first)]
            found.append(Dimension(each, slot, relative_to=each if name in relative else None))
    return tuple(found)


def _both(relative: tuple[str, ...], **groups: tuple) -> dict[str, tuple[Dimension, ...]]:
    """State and action of the same groups."""
    return {"state": _dims(STATE_SLOTS, **groups), "action": _dims(ACTION_SLOTS, relative, **groups)}


_XYZ_RPY = ("x", "y", "z", "roll", "pitch", "yaw")

register(Embodiment(
    # clips without a robot, resampled to PushT's rate; for other mixtures dataclasses.replace(..., rate=...)
    name="video_only", id=0, views=("image",), view_layout="single", rate=10.0))

register(Embodiment(
    # gym-pusht: a disc pushes a T on a 512 x 512 table; the action is a target position of the disc, in pixels,
    # absolute as in the published PushT datasets
    name="pusht", id=1, views=("image",), view_layout="single", rate=10.0,
    state=(Dimension("agent_x", STATE_SLOTS["left_arm"][0]), Dimension("agent_y", STATE_SLOTS["left_arm"][1])),
    action=(Dimension("target_x", ACTION_SLOTS["left_arm"][0], low=0, high=512, moves="agent_x"),
            Dimension("target_y", ACTION_SLOTS["left_arm"][1], low=0, high=512, moves="agent_y")),
    instruction="push the T onto the green target"))

register(Embodiment(
    # Franka on the DROID stand; joints in rad, gripper 0 open to 1 closed (facts/dreamzero.md, f)
    name="droid", id=17, views=("exterior_1", "exterior_2", "wrist"), view_layout="wide_top", rate=15.0,
    prompt="A Franka arm; above its wrist camera, below two cameras at its sides. {instruction}",
    **_both(("joint",), joint=("left_arm", 7), gripper=("left_gripper", 1))))

register(Embodiment(
    # AgiBot G1 in the order of the published converter; joints in rad, lift in m, base in m/s and rad/s
    name="agibot_g1", id=26, views=("top_head", "hand_left", "hand_right"), view_layout="grid_2x2", rate=30.0,
    prompt="An AgiBot G1; top left its head camera, below the left hand's, at the right the right hand's. "
           "{instruction}",
    state=_dims(STATE_SLOTS, left_arm=("left_arm", 7), right_arm=("right_arm", 7), left_effector=("left_gripper", 1),
                right_effector=("right_gripper", 1), head=("torso", 2), waist=("torso", 2, 2)),
    action=_dims(ACTION_SLOTS, ("left_arm", "right_arm", "left_effector", "right_effector", "head", "waist"),
                 left_arm=("left_arm", 7), right_arm=("right_arm", 7), left_effector=("left_gripper", 1),
                 right_effector=("right_gripper", 1), head=("torso", 2), waist=("torso", 2, 2), velocity=("base", 2))))

register(Embodiment(
    # two YAM arms; joints in rad, grippers 0 to 1; all actions relative, grippers too (facts/dreamzero.md, f)
    name="yam", id=32, views=("top", "left", "right"), view_layout="grid_2x2", rate=30.0,
    prompt="Two YAM arms; top left the camera above, below the left wrist's, at the right the right wrist's. "
           "{instruction}",
    **_both(("left_joint", "left_gripper", "right_joint", "right_gripper"),
            left_joint=("left_arm", 6), left_gripper=("left_gripper", 1),
            right_joint=("right_arm", 6), right_gripper=("right_gripper", 1))))

def _released(name: str, id: int) -> Embodiment:
    """The robot as DreamZero's released weights have it: its dimensions one after another, from slot 0 on. The released
    configs name the keys in this order. How wide AgiBot's state was is not known: its converter writes these 20
    numbers, the docs say 32 (facts/dreamzero.md, i 11)."""
    robot = get_embodiment(name)
    packed = lambda dims: tuple(dataclasses.replace(d, slot=i) for i, d in enumerate(dims))
    return dataclasses.replace(robot, name=f"{name}_dreamzero", id=id, state=packed(robot.state),
                               action=packed(robot.action))


# For runs that begin with released weights, and for export to the public server. DROID's order is that of the slots.
register(_released("agibot_g1", id=126))
register(_released("yam", id=132))

register(Embodiment(
    # ALOHA, two ViperX arms in the order of its datasets; joints in rad, grippers 0 to 1
    name="aloha", id=3, views=("cam_high", "cam_left_wrist", "cam_right_wrist"), view_layout="t_shape", rate=50.0,
    prompt="Two ViperX arms; below the camera above the table, on top the left and the right wrist's. {instruction}",
    **_both(("left_joint", "right_joint"), left_joint=("left_arm", 6), left_gripper=("left_gripper", 1),
            right_joint=("right_arm", 6), right_gripper=("right_gripper", 1))))

register(Embodiment(
    # WidowX 250 of Bridge V2: end effector in m and rad, gripper 0 closed to 1 open; the action is already a difference
    name="widowx", id=4, views=("image_0",), view_layout="single", rate=5.0,
    prompt="A WidowX arm seen from its side. {instruction}",
    state=(*(Dimension(n, STATE_SLOTS["left_arm"][i]) for i, n in enumerate(_XYZ_RPY)),
           Dimension("gripper", STATE_SLOTS["left_gripper"][0])),
    action=(*(Dimension(f"d{n}", ACTION_SLOTS["left_arm"][i]) for i, n in enumerate(_XYZ_RPY)),
            Dimension("gripper", ACTION_SLOTS["left_gripper"][0]))))

register(Embodiment(
    # the Google robot of RT-1: end effector position and quaternion; the action is a difference, its gripper a movement
    name="google_robot", id=5, views=("image",), view_layout="single", rate=3.0,
    prompt="A Google robot seen from its head. {instruction}",
    state=_dims(STATE_SLOTS, pose=("left_arm", 7), gripper=("left_gripper", 1)),
    action=(*(Dimension(f"d{n}", ACTION_SLOTS["left_arm"][i]) for i, n in enumerate(_XYZ_RPY)),
            Dimension("gripper_closedness", ACTION_SLOTS["left_gripper"][0]))))

register(Embodiment(
    # SO-101: five joints and a gripper, in the degrees and percent that LeRobot records
    name="so101", id=6, views=("front", "wrist"), view_layout="side_by_side", rate=30.0,
    prompt="An SO-101 arm; left the camera before it, right the wrist's. {instruction}",
    **_both(("joint",), joint=("left_arm", 5), gripper=("left_gripper", 1))))

register(Embodiment(
    # Meta-World: a Sawyer's hand position in m and gripper opening; the action is a difference in [-1, 1]
    name="metaworld", id=7, views=("image",), view_layout="single", rate=80.0,
    prompt="A Sawyer arm at a table. {instruction}",
    state=_dims(STATE_SLOTS, hand=("left_arm", 3), gripper=("left_gripper", 1)),
    action=_dims(ACTION_SLOTS, hand_difference=("left_arm", 3), gripper=("left_gripper", 1))))

register(Embodiment(
    # the same arm as data_pipelines/simulators/metaworld records it: a command is held for four steps of the simulator,
    # and the gripper, which its experts never move, is not learnt
    name="metaworld_20hz", id=8, views=("image",), view_layout="single", rate=20.0,
    prompt="A Sawyer arm at a table. {instruction}",
    state=_dims(STATE_SLOTS, hand=("left_arm", 3), gripper=("left_gripper", 1)),
    action=(*(Dimension(f"hand_difference_{i}", ACTION_SLOTS["left_arm"][i], low=-1, high=1) for i in range(3)),
            Dimension("gripper", ACTION_SLOTS["left_gripper"][0], low=-1, high=1, constant=True))))

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
