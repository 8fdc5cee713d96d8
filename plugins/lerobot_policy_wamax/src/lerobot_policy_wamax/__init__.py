"""World-action models exported by Wamax as policies of LeRobot; importing this registers the type "wamax"."""

from lerobot_policy_wamax.configuration_wamax import WamaxConfig
from lerobot_policy_wamax.modeling_wamax import WamaxPolicy
from lerobot_policy_wamax.processor_wamax import make_wamax_pre_post_processors

__all__ = ["WamaxConfig", "WamaxPolicy", "make_wamax_pre_post_processors"]
