"""The registry of robots: one entry each, with where its numbers land in the shared slots.

Adding a robot is one `register(Embodiment(...))`; nothing else in the repository lists robots. A robot that gets
another name stands in renamed.json under its old one, so that files written before are still read.
"""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

from absl import logging

from data_pipelines.robots import public_sets
from data_pipelines.robots.dimensions import OPENING, TWO_ARMS, TWO_GRIPPERS, numbered, targets, with_limits
from data_pipelines.robots.embodiment import Dimension, Embodiment, check_known
from data_pipelines.robots.limits import AGIBOT_G1, DIFFERENCES, NO_GRIPPER_SPEED, PANDA, VIPERX, YAM
from data_pipelines.robots.slots import ACTION_SLOTS, STATE_SLOTS
from world_model import kinds
from world_model.differences import first_difference

EMBODIMENTS: dict[str, Embodiment] = {}
_SAVED = kinds.fields({"views": kinds.list_of(kinds.text), "state": kinds.list_of(kinds.anything),
                       "action": kinds.list_of(kinds.anything)}, required=("views", "state", "action"))


def register(embodiment: Embodiment) -> Embodiment:
    """Adds a robot, or finds the same one there, for configs are read twice. Raises ValueError where another one has
    its name or id."""
    if EMBODIMENTS.get(embodiment.name) == embodiment:
        return embodiment
    for other in EMBODIMENTS.values():
        if other.name == embodiment.name or other.id == embodiment.id:
            raise ValueError(f"embodiment {embodiment.name!r} (id {embodiment.id}) collides with "
                             f"{other.name!r} (id {other.id}); names and ids are unique")
    EMBODIMENTS[embodiment.name] = embodiment
    return embodiment


def get_embodiment(name: str) -> Embodiment:
    """The registered robot of that name, or of the name that renamed.json gives it; raises ValueError naming the
    nearest."""
    if name not in EMBODIMENTS and (new := renamed().get(name)):
        logging.warning("embodiment %r is now called %r", name, new)
        name = new
    check_known("embodiment", name, EMBODIMENTS)
    return EMBODIMENTS[name]


@functools.cache
def renamed() -> dict[str, str]:
    """{old name: new name} of the robots that were called otherwise once."""
    return kinds.read(Path(__file__).with_name("renamed.json"), kinds.map_of(kinds.text))


def name_in_files(name: str) -> str:
    """A robot's oldest name: what is compared with the files of earlier runs says this one."""
    return next((old for old, new in renamed().items() if new == name), name)


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
    unlimited="the simulated disc follows its target at a speed of its own",
    instruction="push the T onto the green target"))

register(Embodiment(
    # Franka on the DROID stand (arXiv 2403.12945); joints in rad, gripper 0 open to 1 closed; the joints'
    # limits are those of the maker's interface specification
    name="droid", id=17, views=("exterior_1", "exterior_2", "wrist"), view_layout="wide_top", rate=15.0,
    prompt="A Franka arm; above its wrist camera, below two cameras at its sides. {instruction}",
    **targets(("joint",), {"joint": PANDA, "gripper": OPENING}, joint=("left_arm", 7), gripper=("left_gripper", 1)),
    unlimited=NO_GRIPPER_SPEED))

_G1 = {"left_arm": ("left_arm", 7), "right_arm": ("right_arm", 7), "left_effector": ("left_gripper", 1),
       "right_effector": ("right_gripper", 1), "head": ("torso", 2), "waist": ("torso", 2, 2)}
register(Embodiment(
    # AgiBot G1 in the order of the published converter; joints in rad, lift in m, base in m/s and rad/s
    name="agibot_g1", id=26, views=("top_head", "hand_left", "hand_right"), view_layout="grid_2x2", rate=30.0,
    prompt="An AgiBot G1; top left its head camera, below the left hand's, at the right the right hand's. "
           "{instruction}",
    state=numbered(STATE_SLOTS, (), **_G1),
    action=with_limits(AGIBOT_G1, numbered(ACTION_SLOTS, tuple(_G1), **_G1, velocity=("base", 2))),
    unlimited="the effectors' unit in these recordings is not published, nor how fast the base may be sent"))

register(Embodiment(
    # two YAM arms; joints in rad, grippers 0 to 1; all actions are relative, the grippers' too, as in the code that was
    # published with arXiv 2602.15922 (commit ab790c1)
    name="yam", id=32, views=("top", "left", "right"), view_layout="grid_2x2", rate=30.0,
    prompt="Two YAM arms; top left the camera above, below the left wrist's, at the right the right wrist's. "
           "{instruction}",
    **targets(tuple(TWO_ARMS), {"left_joint": YAM, "right_joint": YAM, **TWO_GRIPPERS}, **TWO_ARMS),
    unlimited="its maker's model says no speeds"))


def _packed(name: str, id: int, prompt: str = "") -> Embodiment:
    """The robot with its dimensions one after another, from slot 0 on: NAME_packed, and with a prompt NAME_released.

    Published weights have it so (arXiv 2602.15922; code at commit ab790c1, whose configs name the keys in this order).
    How wide AgiBot's state was there is not known: the converter writes these 20 numbers, the documentation says 32.
    """
    robot = get_embodiment(name)
    state, action = (tuple(dataclasses.replace(dim, slot=i) for i, dim in enumerate(dims))
                     for dims in (robot.state, robot.action))
    return dataclasses.replace(robot, name=f"{name}_{'released' if prompt else 'packed'}", id=id, state=state,
                               action=action, prompt=prompt or robot.prompt)


register(_packed("agibot_g1", id=126))
register(_packed("yam", id=132))

# For runs that begin with published weights, and for export to the public server: slots and prompts word for word as
# the weights know them. The server has these prompts in its code and its clients send the instruction alone.
_RELEASED = ("A multi-view video shows that a robot {{instruction:lower}} The video is split into {views} The robot "
             "{{instruction:lower}}")
register(_packed("droid", id=217, prompt=_RELEASED.format(
    views="three views: The top view shows the camera view from the robot's wrist, the bottom-left view shows the "
          "camera view from the left exterior camera, and the bottom-right view shows the camera view from the right "
          "exterior camera. During training, one of the two bottom exterior views may be a black screen (dropped "
          "view).")))
register(_packed("agibot_g1", id=226, prompt=_RELEASED.format(
    views="four views: The top-left view shows the camera view from the robot's head, the top-right view shows the "
          "camera view from the right hand, the bottom-left view shows the camera view from the left hand, and the "
          "bottom-right view is a black screen (inactive view).")))
register(_packed("yam", id=232, prompt=_RELEASED.format(
    views="four views: The top-left view shows the top camera, the top-right view shows the right camera, the "
          "bottom-left view shows the left camera, and the bottom-right view is a black screen.")))

register(Embodiment(
    # ALOHA, two ViperX arms in the order of its datasets; joints in rad, grippers 0 to 1
    name="aloha", id=3, views=("cam_high", "cam_left_wrist", "cam_right_wrist"), view_layout="t_shape", rate=50.0,
    prompt="Two ViperX arms; below the camera above the table, on top the left and the right wrist's. {instruction}",
    **targets(("left_joint", "right_joint"), {"left_joint": VIPERX, "right_joint": VIPERX, **TWO_GRIPPERS}, **TWO_ARMS),
    unlimited=NO_GRIPPER_SPEED))

register(Embodiment(
    # SO-101: five joints and a gripper, in the degrees and percent that LeRobot records
    name="so101", id=6, views=("front", "wrist"), view_layout="side_by_side", rate=30.0,
    prompt="An SO-101 arm; left the camera before it, right the wrist's. {instruction}",
    **targets(("joint",), {"gripper": (0, 100, None)}, joint=("left_arm", 5), gripper=("left_gripper", 1)),
    unlimited="where a joint's degrees begin is each arm's own calibration, which its controller bounds"))

register(Embodiment(
    # Meta-World: a Sawyer's hand position in m and gripper opening; the action is a difference in [-1, 1]
    name="metaworld", id=7, views=("image",), view_layout="single", rate=80.0,
    prompt="A Sawyer arm at a table. {instruction}",
    state=numbered(STATE_SLOTS, hand=("left_arm", 3), gripper=("left_gripper", 1)),
    action=tuple(dataclasses.replace(dim, low=-1, high=1)
                 for dim in numbered(ACTION_SLOTS, hand_difference=("left_arm", 3), gripper=("left_gripper", 1))),
    unlimited=DIFFERENCES))

register(Embodiment(
    # the same arm as data_pipelines/simulators/tabletop records it: a command is held for four steps of the simulator,
    # and the gripper, which its experts never move, is not learnt
    name="metaworld_20hz", id=8, views=("image",), view_layout="single", rate=20.0,
    prompt="A Sawyer arm at a table. {instruction}",
    state=numbered(STATE_SLOTS, hand=("left_arm", 3), gripper=("left_gripper", 1)),
    action=(*(Dimension(f"hand_difference_{i}", ACTION_SLOTS["left_arm"][i], low=-1, high=1) for i in range(3)),
            Dimension("gripper", ACTION_SLOTS["left_gripper"][0], low=-1, high=1, constant=True)),
    unlimited=DIFFERENCES))

register(dataclasses.replace(  # the same for tasks whose experts move the gripper
    get_embodiment("metaworld"), name="metaworld_gripper_20hz", id=10, rate=20.0))

register(Embodiment(
    # ogbench's UR5e: hand position in m, cosine and sine of its angle, gripper 0 open to 1 closed; the action is a
    # difference in [-1, 1] of the position, the angle and the gripper
    name="ogbench_20hz", id=11, views=("image",), view_layout="single", rate=20.0,
    prompt="A UR5e arm at a table. {instruction}",
    state=numbered(STATE_SLOTS, hand=("left_arm", 3), turn=("left_arm", 2, 3), gripper=("left_gripper", 1)),
    action=tuple(dataclasses.replace(dim, low=-1, high=1)
                 for dim in numbered(ACTION_SLOTS, hand_difference=("left_arm", 3), turn_difference=("left_arm", 1, 3),
                                     gripper_difference=("left_gripper", 1))),
    unlimited=DIFFERENCES))

for _robot in public_sets.ROBOTS:
    register(_robot)

BUILT_IN = frozenset(EMBODIMENTS)  # all others are registered by configs


def registered_elsewhere(names: Iterable[str]) -> dict[str, dict]:
    """JSON data of those robots that are not registered here, for files that outlive the config which does it."""
    return {name: _as_json(get_embodiment(name)) for name in sorted(set(names) - BUILT_IN - renamed().keys())}


def _as_json(robot: Embodiment) -> dict:
    return kinds.plain(dataclasses.asdict(robot))


def _by_name(fields: dict) -> dict:
    """The fields of a robot with each dimension under its name."""
    return fields | {part: {dim["name"]: dim for dim in fields[part]} for part in ("state", "action")}


def register_saved(robots: dict[str, dict]) -> None:
    """Registers robots of `registered_elsewhere`; one of that name that is registered is kept, and a difference said.
    Raises ValueError where one is not to be read."""
    for name, fields in robots.items():
        where = f"saved robot {name!r}"
        kinds.check(fields, _SAVED, where)
        dims = {part: tuple(kinds.make(Dimension, dim, f"{where}: {part}") for dim in fields[part])
                for part in ("state", "action")}
        robot = kinds.make(Embodiment, fields, where, views=tuple(fields["views"]), **dims)
        if name not in EMBODIMENTS:
            register(robot)
        elif EMBODIMENTS[name] != robot:
            logging.warning("robot %r is registered otherwise than it was when the run was trained: %s", name,
                            first_difference(_by_name(fields), _by_name(_as_json(EMBODIMENTS[name])),
                                             ("the run", "this process")))
