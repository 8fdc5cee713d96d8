"""An exported DreamZero as a policy (extra: torch)."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from world_model.diffusion.inpainting import Inpainting
from world_model.families.base.torch_policy import TorchPolicy
from world_model.families.dreamzero.torch import loading
from world_model.families.dreamzero.torch.runtime import CachedBlocks
from world_model.families.dreamzero.torch.sampler import DreamZeroTorchSampler
from world_model.families.wan.inputs import Conditions


class EpisodeState(NamedTuple):
    """What an episode keeps."""

    session: CachedBlocks
    condition: Tensor | None  # [1, F, h, w, 4 + C]


class DreamZeroTorchPolicy(TorchPolicy):
    """`runtime` is a DreamZeroTorchSampler."""

    @property
    def last_block(self) -> int:
        """See `Policy`."""
        return self.runtime.runtime.layout.num_blocks

    def load(self, directory: Path) -> DreamZeroTorchSampler:
        return DreamZeroTorchSampler(loading.load(directory, self.device)[0], **self.settings)

    def begin_episode(self, start: Conditions) -> EpisodeState:
        kept = EpisodeState(self.runtime.start(start.text, start.image, start.unconditional_text), start.condition)
        self.runtime.prefill(kept.session, start.first_latents, self._condition(kept, 0))
        return kept

    def observe_block(self, state: EpisodeState, seen: Tensor, actions: Tensor, block: int) -> EpisodeState:
        """See `TorchPolicy`; executed actions are not remembered."""
        state.session.rewind(block)
        self.runtime.prefill(state.session, seen, self._condition(state, block))
        return state

    def predict_block(self, state: EpisodeState, noise: tuple, robot_state: Tensor, block: int, inpainting: Inpainting):
        return self.runtime.denoise(state.session, *noise, robot_state, self._condition(state, block), inpainting)

    def _condition(self, kept: EpisodeState, block: int) -> Tensor | None:
        n = self.runtime.runtime.layout.frames_per_block
        first = 1 + (block - 1) * n
        frames = slice(first, first + n) if block else slice(0, 1)
        return None if kept.condition is None else kept.condition[:, frames]
