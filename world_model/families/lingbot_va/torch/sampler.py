"""LingBot-VA's sampler in PyTorch: the procedure of families/lingbot_va/sampler.py (extra: torch).

The cache is a dict from block to keys and values. As in the ring, block b's first pass drops block b - window_blocks,
and a pass of block b sees the cached blocks before it and itself.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from world_model.diffusion.inpainting import Inpainting, inpainting_velocity
from world_model.families.lingbot_va.layout import LingBotVASpec, Modality, frame_positions
from world_model.families.lingbot_va.steps import EulerPasses, check_settings, levels
from world_model.families.lingbot_va.torch.network import KeysValues, Network
from world_model.families.wan.torch_layers import Guided
from world_model.layers import rotary


@dataclasses.dataclass(frozen=True)
class TorchEpisode:
    """An episode under way: what its cache holds, and where it is."""

    context: tuple
    cache: dict[int, KeysValues] = dataclasses.field(default_factory=dict)  # changes from pass to pass
    chunk: int = 0  # number of the chunk that is predicted and then observed
    frame: int = 0  # its first latent frame, counted from the episode's start

    def next(self, frames: int) -> "TorchEpisode":
        """The episode at its next chunk, after one of `frames` latent frames."""
        return dataclasses.replace(self, chunk=self.chunk + 1, frame=self.frame + frames)


@dataclasses.dataclass(frozen=True)
class LingBotVATorchSampler(Guided):
    """Settings as in LingBotVASampler."""

    network: Network
    spec: LingBotVASpec
    steps: int = 20
    action_steps: int = 50
    shift: float = 5.0
    action_shift: float = 1.0
    guidance: float = 1.0
    action_guidance: float = 1.0
    chunk_frames: int = 2
    window_blocks: int = 30
    executed_steps: int = 0

    def __post_init__(self):
        check_settings(self.spec, self)

    @torch.no_grad()
    def __call__(self, first_latents: Tensor, text: Tensor, noise: Sequence[tuple[Tensor, Tensor]],
                 unconditional_text: Tensor | None = None, history: tuple[Tensor, Tensor] | None = None
                 ) -> tuple[Tensor, Tensor]:
        """-> latents [B, F, h, w, C], actions [B, F n, action_dim], normalised, group 0 zero.

        noise: per chunk, of its video [B, K, h, w, C] and its actions [B, K n, A]. history: real latents and executed
        actions of all frames for the cache; without it, the rollout's own.
        """
        episode = self.start(text, unconditional_text)
        latents, actions = [], []
        for chunk, (video_noise, action_noise) in enumerate(noise):
            video, action = self.predict(episode, video_noise, action_noise, first_latents if chunk == 0 else None)
            latents.append(video)
            actions.append(action)
            first, count, n = episode.frame, video.shape[1], self.spec.actions_per_frame
            if history is not None and chunk + 1 < len(noise):
                self.observe(episode, history[0][:, first:first + count], history[1][:, first * n:(first + count) * n])
            episode = episode.next(count)
        return torch.cat(latents, 1), torch.cat(actions, 1)

    @torch.no_grad()
    def start(self, text: Tensor, unconditional_text: Tensor | None = None) -> TorchEpisode:
        """An episode with an empty cache."""
        return TorchEpisode(self.network.context(self.branches(text, unconditional_text)))

    @torch.no_grad()
    def predict(self, episode: TorchEpisode, noise: Tensor, action_noise: Tensor, first_latents: Tensor | None = None,
                action_mask: Tensor | None = None, inpainting: Inpainting | None = None) -> tuple[Tensor, Tensor]:
        """(latents, actions) of the next chunk; action_mask bool [B, A], channels that this robot has."""
        is_given = torch.zeros(noise.shape[1], dtype=torch.bool, device=noise.device)
        is_given[0] = first_latents is not None
        group = is_given.repeat_interleave(self.spec.actions_per_frame)[:, None]
        free = ~group if action_mask is None else ~group & action_mask[:, None]

        def hold_video(x):
            return x if first_latents is None else torch.where(is_given[:, None, None, None], first_latents, x)

        def hold_actions(x):
            return torch.where(free, x, 0)

        video, action = (levels(self.steps, self.shift, self.executed_steps),
                         levels(self.action_steps, self.action_shift))
        given = inpainting or Inpainting(None, None)
        latents = self._denoise(episode, Modality.VIDEO, noise, hold_video, is_given, video,
                                (given.latents, given.latent_mask))
        return latents, self._denoise(episode, Modality.ACTION, action_noise, hold_actions, is_given, action,
                                      (given.actions, given.action_mask))

    @torch.no_grad()
    def observe(self, episode: TorchEpisode, latents: Tensor, actions: Tensor) -> None:
        """Puts what really happened in the chunk into the place of what was predicted."""
        clean = latents.new_zeros(latents.shape[:2])
        self.run_pass(episode, Modality.VIDEO, latents, clean)
        self.run_pass(episode, Modality.ACTION, actions, clean)

    @torch.no_grad()
    def run_pass(self, episode: TorchEpisode, modality: Modality, x: Tensor, timesteps: Tensor) -> Tensor:
        """Velocity of the chunk's video [B, K, h, w, C] or actions, at timesteps [B, K]; what it wrote stays in the
        cache."""
        block, frames = 2 * episode.chunk + (modality is Modality.ACTION), timesteps.shape[1]
        positions = frame_positions(self.spec, modality, range(episode.frame, episode.frame + frames))
        table = rotary.table(rotary.position_angles(positions, self.spec.head_dim).astype("float32"))
        seen = [episode.cache[b] for b in sorted(episode.cache) if block - self.window_blocks < b < block]
        past = [tuple(torch.cat(parts, 1) for parts in zip(*layer, strict=True))
                for layer in zip(*seen, strict=True)] or None
        velocity, own = self.network.run(modality, self.both(x), self.both(timesteps),
                                         torch.from_numpy(table).to(x.device), episode.context, past)
        episode.cache.pop(block - self.window_blocks, None)
        episode.cache[block] = own
        return velocity

    def _denoise(self, episode: TorchEpisode, modality: Modality, x: Tensor, hold, is_given: Tensor, steps: EulerPasses,
                 given: tuple) -> Tensor:
        """Euler steps; the last pass is what stays in the cache. hold(x) puts what is given into its place; given:
        (value, mask) of what is inpainted, or Nones."""
        value, mask = given
        constant = None if mask is None else inpainting_velocity(x, value, float(steps.changes.sum()))
        scale = self.guidance if modality is Modality.VIDEO else self.action_guidance
        for time, change in zip(*steps, strict=True):
            x = hold(x)
            timesteps = torch.where(is_given, 0.0, float(time)).float().expand(len(x), -1)
            velocity = self.guide(self.run_pass(episode, modality, x, timesteps), scale)
            x = x + float(change) * (velocity if mask is None else torch.where(mask, constant, velocity))
        return hold(x)
