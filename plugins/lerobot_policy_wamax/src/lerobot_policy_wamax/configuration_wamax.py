"""What LeRobot knows of a policy exported by Wamax."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode

from launch.exporting.lerobot import AS_IT_IS, check_config

NO_TRAINING = ("a policy of Wamax acts and does not train in LeRobot: train it with `python -m launch.train` of Wamax, "
               "which reads LeRobot's datasets, and export it again")


@PreTrainedConfig.register_subclass("wamax")
@dataclass
class WamaxConfig(PreTrainedConfig):
    """`launch.export --format=lerobot` writes it; what a user may change are the first five."""

    n_action_steps: int = 0  # of a chunk that are executed before the next one is asked for
    sessions: int = 64  # episodes at once
    seed: int = 0  # of the noise
    server: str = ""  # ws://HOST:PORT of `launch.serve`, which then runs the model; empty: it runs here
    token_file: str = ""  # with what the server's --token_file holds
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {kind: NormalizationMode(mode) for kind, mode in AS_IT_IS.items()})
    wamax: dict[str, Any] = field(default_factory=dict)  # our part: launch/exporting/lerobot.py

    def __post_init__(self):
        super().__post_init__()
        if self.wamax:
            check_config(self.wamax, "config.json: wamax")

    @property
    def observation_delta_indices(self) -> None:
        """One moment at a time: the policy keeps what it has seen."""

    @property
    def action_delta_indices(self) -> None:
        """None: no chunks of a dataset are asked for."""

    @property
    def reward_delta_indices(self) -> None:
        """None: no rewards are asked for."""

    def validate_features(self) -> None:
        """The policy compares features with its robot's."""

    def get_optimizer_preset(self):
        """Raises NotImplementedError: lerobot-train ends here."""
        raise NotImplementedError(NO_TRAINING)

    def get_scheduler_preset(self):
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_TRAINING)
