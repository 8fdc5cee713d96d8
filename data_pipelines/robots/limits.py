"""Joint limits of arms as their makers publish them: (low, high, greatest speed) of each joint in rad and rad/s."""

from math import pi, radians

# Franka Emika's interface specification of the Panda.
PANDA = ((-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
         (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973), (2.175,) * 4 + (2.61,) * 3)

# Interbotix's URDF of the ViperX 300 6DOF (interbotix_ros_manipulators at 41746ab).
VIPERX = ((-pi, radians(-106), radians(-101), -pi, radians(-107), -pi),
          (pi, radians(72), radians(92), pi, radians(128), pi), pi)

# MuJoCo Menagerie's i2rt_yam (cc0a829), made of the maker's model.
YAM = ((-2.61799, 0, 0, -1.5708, -1.5708, -2.0944), (3.05433, 3.66519, 3.66519, 1.5708, 1.5708, 2.0944), None)

# AgiBot's URDF of the G1 with its gripper (genie_sim at ebfd1b2): head yaw and pitch, waist pitch and lift in m.
_LEFT = ((-3.14, -2.09, -3.10, -1.48, -3.10, -1.74, -3.10), (3.14, 1.48, 3.10, 1.48, 3.10, 1.74, 3.10), 3.14)
_RIGHT = ((-3.14, -1.48, -3.10, -1.48, -3.10, -1.74, -3.10), (3.14, 2.09, 3.10, 1.48, 3.10, 1.74, 3.10), 3.14)
AGIBOT_G1 = {"left_arm": _LEFT, "right_arm": _RIGHT,
             "head": ((-pi / 2, radians(-20)), (pi / 2, radians(30)), 1.0), "waist": (0, (pi / 2, 0.55), (0.5, 0.1))}

# Why a robot declares less.
NO_GRIPPER_SPEED = "no source says how fast the gripper may be told to move"
DIFFERENCES = "commands are differences, whose range is all there is to limit"
SIMULATED = "the simulator's own controller bounds the joints"
UNPUBLISHED = "the data set does not say what its arms may be sent"
