"""LeRobot's steps around the policy: names, batches and devices. Wamax normalises by itself."""

from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.factory import make_default_pre_post_processors

from launch.exporting.lerobot import POSTPROCESSOR, PREPROCESSOR
from lerobot_policy_wamax.configuration_wamax import WamaxConfig


def make_wamax_pre_post_processors(config: WamaxConfig, dataset_stats: dict | None = None
                                   ) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """LeRobot's default pipelines; their steps of normalisation leave values as they are."""
    before, after = make_default_pre_post_processors(config, dataset_stats)
    assert (before.name, after.name) == (PREPROCESSOR, POSTPROCESSOR)
    return before, after
