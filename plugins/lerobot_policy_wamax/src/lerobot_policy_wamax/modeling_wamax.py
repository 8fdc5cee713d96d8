"""The policy: LeRobot's batches to Wamax's engine in PyTorch, here or behind a server, and its commands back."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from launch.simulation.lerobot import ask_server, check_action, open_episodes
from lerobot_policy_wamax.configuration_wamax import NO_TRAINING, WamaxConfig

DOWNLOAD = ("cache_dir", "force_download", "proxies", "token", "local_files_only")
WEIGHTS = ("model*.safetensors", "wamax/encoders/*")


class WamaxPolicy(PreTrainedPolicy):
    """An export of Wamax. Its weights stand outside of this module's parameters: LeRobot does not train them."""

    config_class = WamaxConfig
    name = "wamax"

    def __init__(self, config: WamaxConfig, folder: str | Path | None = None, **kwargs):
        """folder: of `launch.export --format=lerobot`, where a server is asked also without the weights. Raises
        ValueError without one, FeatureError where LeRobot's actions are not the robot's, ServerError."""
        super().__init__(config)
        if folder is None:
            raise ValueError("a policy of Wamax is not made from scratch: say --policy.path=FOLDER, with a folder of "
                             "`python -m launch.export --format=lerobot`")
        self.folder = Path(folder)
        options = {"sessions": config.sessions, "seed": config.seed, "execute": config.n_action_steps}
        self.episodes = ask_server(folder, config.server, config.token_file, **options) if config.server else \
            open_episodes(folder, config.device, **options)
        if config.action_feature is not None:
            check_action(self.episodes.robot, config.action_feature.shape)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None,
                        revision: str | None = None, strict: bool = True, **kwargs) -> "WamaxPolicy":
        """See PreTrainedPolicy; of a name on the Hub the whole folder is fetched, but for a server's clients the
        weights. Weights are always held to every name, shape and hash."""
        download = {name: kwargs.pop(name) for name in DOWNLOAD if name in kwargs}
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            left_out = WEIGHTS if config is not None and config.server else None
            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=revision, ignore_patterns=left_out,
                                            **download))
        config = config or PreTrainedConfig.from_pretrained(folder, **kwargs)
        return cls(config, folder).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict | None = None) -> None:
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)
        self.config._save_pretrained(save_directory)

    def reset(self) -> None:
        """New episodes begin."""
        self.episodes.reset()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs) -> Tensor:
        """Commands [rows, action dims] of this control step, in robot units."""
        return self._tensor(self.episodes.act(*_arrays(batch)))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs) -> Tensor:
        """Commands [rows, horizon, action dims] from what is seen now alone: a new window begins here."""
        return self._tensor(self.episodes.chunk(*_arrays(batch)))

    def forward(self, batch: dict[str, Tensor]):
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_TRAINING)

    def get_optim_params(self):
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_TRAINING)

    def _tensor(self, commands) -> Tensor:
        return torch.from_numpy(commands).to(self.config.device)


def _arrays(batch: dict) -> tuple[dict, list[str]]:
    """(arrays of what is observed, tasks)."""
    seen = {name: value.cpu().numpy() for name, value in batch.items()
            if name.startswith("observation.") and isinstance(value, Tensor)}
    tasks = batch.get("task") or ""
    rows = len(next(iter(seen.values()))) if seen else 0
    return seen, [tasks] * rows if isinstance(tasks, str) else list(tasks)
