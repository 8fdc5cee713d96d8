"""What clients say and hear, one file for each language that published clients speak."""

from collections.abc import Callable

from launch.serving.messages import Protocol
from launch.serving.protocols.dreamzero import DreamZero
from launch.serving.protocols.lingbot_va import LingBotVA
from launch.serving.protocols.lingbot_vla import LingBotVLA
from launch.serving.protocols.openpi import OpenPi

PROTOCOLS: dict[str, Callable[..., Protocol]] = {"openpi": OpenPi, "dreamzero": DreamZero, "lingbot_va": LingBotVA,
                                                 "lingbot_vla": LingBotVLA}
