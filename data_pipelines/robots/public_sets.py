"""The robots of public data sets, in the columns and units in which these are published.

A recipe's entry joins a data set's columns in the order of the robot's dimensions. How a data set tells an action
(a movement, the same frame's state) is changed by the entry's `conventions` (sources/conventions.py), not here.
"""

import dataclasses
from math import pi

from data_pipelines.robots.dimensions import OPENING, TWO_ARMS, TWO_GRIPPERS, XYZ_RPY, numbered, targets, with_limits
from data_pipelines.robots.embodiment import Dimension, Embodiment
from data_pipelines.robots.limits import AGIBOT_G1, DIFFERENCES, NO_GRIPPER_SPEED, PANDA, SIMULATED, UNPUBLISHED
from data_pipelines.robots.slots import ACTION_SLOTS, ARM_EFFECTOR_SLOTS, BODY_SLOTS, DUAL_ARM_SLOTS, STATE_SLOTS

_POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")


def _differences() -> tuple[Dimension, ...]:
    """Position and rotation of a hand, as differences."""
    return tuple(Dimension(f"d{name}", slot) for name, slot in zip(XYZ_RPY, ACTION_SLOTS["left_arm"]))


def _pose_and_gripper(side: str) -> tuple[Dimension, ...]:
    """Pose and gripper of the "left" or "right" arm in the slots of two arms."""
    slots = DUAL_ARM_SLOTS[f"{side}_pose"]
    pose = (Dimension(f"{side}_{name}", slot) for name, slot in zip(_POSE, slots, strict=True))
    return *pose, Dimension(f"{side}_gripper", DUAL_ARM_SLOTS[f"{side}_gripper"][0])


def _robotwin_in_groups(name: str, id: int, slots: dict[str, range]) -> Embodiment:
    """RoboTwin's two arms of six joints in rad and a gripper of 0 to 1 each, absolute, as its LeRobot sets have them,
    normalised as in the data configs published with arXiv 2601.18692 and 2607.06403."""
    dims = numbered(slots, left_joint=("arm", 6), left_gripper=("effector", 1), right_joint=("arm", 6, 6),
                    right_gripper=("effector", 1, 1))
    action = tuple(dataclasses.replace(dim, low=0, high=1) if "gripper" in dim.name else dim for dim in dims)
    return Embodiment(name=name, id=id, views=("cam_high", "cam_left_wrist", "cam_right_wrist"), view_layout="t_shape",
                      rate=50.0, state=dims, action=action, normalisation="bounds_99_unclipped", unlimited=SIMULATED)


_WIDOWX = Embodiment(
    # WidowX 250 of Bridge V2: end effector in m and rad, gripper 0 closed to 1 open; the action is already a difference
    name="widowx", id=4, views=("image_0",), view_layout="single", rate=5.0,
    prompt="A WidowX arm seen from its side. {instruction}",
    state=(*(Dimension(n, STATE_SLOTS["left_arm"][i]) for i, n in enumerate(XYZ_RPY)),
           Dimension("gripper", STATE_SLOTS["left_gripper"][0])),
    action=(*_differences(), Dimension("gripper", ACTION_SLOTS["left_gripper"][0], low=0, high=1)),
    unlimited="commands are differences, which the arm's own controller bounds")

_GOOGLE_ROBOT = Embodiment(
    # the Google robot of RT-1: end effector position and quaternion; the action is a difference, its gripper a
    # movement; limits: the action space published with RT-1
    name="google_robot", id=5, views=("image",), view_layout="single", rate=3.0,
    prompt="A Google robot seen from its head. {instruction}",
    state=numbered(STATE_SLOTS, pose=("left_arm", 7), gripper=("left_gripper", 1)),
    action=(*(dataclasses.replace(dim, low=-bound, high=bound)
              for dim, bound in zip(_differences(), (1, 1, 1, pi / 2, pi / 2, pi / 2), strict=True)),
            Dimension("gripper_closedness", ACTION_SLOTS["left_gripper"][0], low=-1, high=1)),
    unlimited=DIFFERENCES)

_AGIBOT_WORLD = Embodiment(
    # AgiBot World's G1 with grippers, columns joint, effector, head, waist, velocity: an effector's state is its
    # opening in mm and its action 0 open to 1 closed, so that neither is relative to the other nor a target of it
    name="agibot_world", id=27, views=("head", "hand_left", "hand_right"), view_layout="grid_2x2", rate=30.0,
    prompt="An AgiBot G1; top left its head camera, below the left hand's, at the right the right hand's. "
           "{instruction}",
    state=numbered(STATE_SLOTS, left_arm=("left_arm", 7), right_arm=("right_arm", 7), left_opening=("left_gripper", 1),
                   right_opening=("right_gripper", 1), head=("torso", 2), waist=("torso", 2, 2)),
    action=with_limits(AGIBOT_G1 | {"left_closing": OPENING, "right_closing": OPENING}, numbered(
        ACTION_SLOTS, ("left_arm", "right_arm", "head", "waist"), left_arm=("left_arm", 7), right_arm=("right_arm", 7),
        left_closing=("left_gripper", 1), right_closing=("right_gripper", 1), head=("torso", 2), waist=("torso", 2, 2),
        velocity=("base", 2))),
    unlimited="no source says how fast gripper and base may be sent")

ROBOTS: tuple[Embodiment, ...] = (
    _WIDOWX, _GOOGLE_ROBOT, _AGIBOT_WORLD,
    # the same arm where the convention "rt_1" has made of the gripper's movement what it is to be: 0 closed to 1 open
    dataclasses.replace(
        _GOOGLE_ROBOT, name="google_robot_absolute", id=51,
        action=(*_GOOGLE_ROBOT.action[:-1], Dimension("gripper", ACTION_SLOTS["left_gripper"][0], low=0, high=1))),
    Embodiment(
        # RoboTwin as arXiv 2601.21998 uses it (code at commit 58c2ae5): end-effector poses of two arms, in the order
        # left pose, left gripper, right pose, right gripper; no state, the actions' history stands for it. Making poses
        # relative to a segment's first one is the source's business.
        name="robotwin_dual_arm", id=20, views=("head", "left_wrist", "right_wrist"), view_layout="t_shape", rate=50.0,
        action=_pose_and_gripper("left") + _pose_and_gripper("right"), unlimited=SIMULATED),
    _robotwin_in_groups("robotwin_joints_75", 21, ARM_EFFECTOR_SLOTS),
    _robotwin_in_groups("robotwin_joints_55", 22, BODY_SLOTS),
    Embodiment(
        # RoboTwin's two arms in the shared slots: six joints in rad and a gripper of 0 to 1 each, absolute
        name="robotwin_joints", id=23, views=("cam_high", "cam_left_wrist", "cam_right_wrist"), view_layout="t_shape",
        rate=50.0,
        prompt="Two simulated arms; below the camera above the table, on top the left and the right wrist's. "
               "{instruction}",
        **targets((), TWO_GRIPPERS, **TWO_ARMS), unlimited=SIMULATED),
    Embodiment(
        # LIBERO's Panda: hand in m and axis-angle, both fingers in m; differences as shares of the controller's range,
        # gripper -1 open to 1 closed. Its sets say 10 Hz, its simulator runs at 20.
        name="libero", id=52, views=("image", "wrist_image"), view_layout="side_by_side", rate=10.0,
        prompt="A simulated Franka arm; left the camera before it, right the wrist's. {instruction}",
        state=numbered(STATE_SLOTS, hand=("left_arm", 6), finger=("hands", 2)),
        action=with_limits({"hand_difference": (-1, 1, None), "gripper": (-1, 1, None)}, numbered(
            ACTION_SLOTS, hand_difference=("left_arm", 6), gripper=("left_gripper", 1))),
        unlimited=DIFFERENCES),
    Embodiment(
        # RoboMIND's Franka: joints in rad, then the gripper
        name="robomind_franka", id=53, views=("camera_top", "camera_left", "camera_right"), view_layout="grid_2x2",
        rate=30.0, prompt="A Franka arm; top left the camera above, below the left one, at the right the right one. "
                          "{instruction}",
        **targets(("joint",), {"joint": PANDA, "gripper": OPENING}, joint=("left_arm", 7), gripper=("left_gripper", 1)),
        unlimited=NO_GRIPPER_SPEED),
    Embodiment(
        # RoboMIND's AgileX, two arms: six joints in rad and a gripper each
        name="robomind_agilex", id=54, views=("camera_front", "camera_left_wrist", "camera_right_wrist"),
        view_layout="t_shape", rate=30.0,
        prompt="Two AgileX arms; below the camera before them, on top the left and the right wrist's. {instruction}",
        **targets(("left_joint", "right_joint"), {}, **TWO_ARMS), unlimited=UNPUBLISHED),
    Embodiment(
        # RoboMIND's UR5: six joints in rad, then the gripper
        name="robomind_ur", id=55, views=("camera_top",), view_layout="single", rate=30.0,
        prompt="A UR arm seen from above. {instruction}",
        **targets(("joint",), {}, joint=("left_arm", 6), gripper=("left_gripper", 1)), unlimited=UNPUBLISHED),
    Embodiment(
        # RoboCOIN's robots of two arms: eef_sim_pose, xyz in m and Euler angles of each, then gripper_open_scale, 0
        # closed to 1 open
        name="robocoin", id=56, views=("cam_high", "cam_left_wrist", "cam_right_wrist"), view_layout="t_shape",
        rate=30.0, prompt="Two arms; below the camera above, on top the left and the right wrist's. {instruction}",
        **targets((), TWO_GRIPPERS, left_pose=("left_arm", 6), right_pose=("right_arm", 6),
                  left_gripper=("left_gripper", 1), right_gripper=("right_gripper", 1)),
        unlimited=UNPUBLISHED),
    Embodiment(
        # InternData-A1's robots of two arms: hands in their base's frame, xyz in m and wxyz. What a gripper is when it
        # is open differs from robot to robot (0.08 to 5.74): one entry for each robot, with statistics of its own
        name="interndata_a1", id=57, views=("head", "hand_left", "hand_right"), view_layout="t_shape", rate=30.0,
        prompt="Two simulated arms; below the head's camera, on top the left and the right hand's. {instruction}",
        **targets((), {}, left_pose=("left_arm", 7), right_pose=("right_arm", 7), left_gripper=("left_gripper", 1),
                  right_gripper=("right_gripper", 1)),
        unlimited=SIMULATED),
    Embodiment(
        # the same with one arm
        name="interndata_a1_single", id=61, views=("head", "hand"), view_layout="side_by_side", rate=30.0,
        prompt="A simulated arm; left the head's camera, right the hand's. {instruction}",
        **targets((), {}, pose=("left_arm", 7), gripper=("left_gripper", 1)), unlimited=SIMULATED),
    Embodiment(
        # Galaxea's R1 Lite, whose torso and wheels are left out: six joints in rad of each arm, grippers 0 to 100
        name="galaxea_r1_lite", id=58, views=("head_rgb", "left_wrist_rgb", "right_wrist_rgb"), view_layout="t_shape",
        rate=15.0, prompt="A Galaxea R1 Lite; below the head's camera, on top the left and the right wrist's. "
                          "{instruction}",
        **targets(("left_joint", "right_joint"), {"left_gripper": (0, 100, None), "right_gripper": (0, 100, None)},
                  **TWO_ARMS),
        unlimited=UNPUBLISHED),
    Embodiment(
        # GR1 in simulation: arms, hands and waist in rad; of a hand's six joints the first is in the gripper's slot
        name="gr1", id=59, views=("ego_view",), view_layout="single", rate=20.0,
        prompt="A GR1 humanoid seen through its own eyes. {instruction}",
        **targets((), {}, left_arm=("left_arm", 7), right_arm=("right_arm", 7), left_palm=("left_gripper", 1),
                  left_hand=("hands", 5), right_palm=("right_gripper", 1), right_hand=("hands", 5, 5),
                  waist=("torso", 3)),
        unlimited=SIMULATED),
    # EgoDex: people's hands at work, filmed from their heads; it has poses and no actions
    Embodiment(name="egodex", id=60, views=("image",), view_layout="single", rate=30.0,
               prompt="A person's hands seen through their own eyes. {instruction}"),
)
