"""LingBot-VA's rollout in PyTorch: world_model/families/lingbot_va/sampler.py's procedure (extra: torch).

The cache is a dict from block to keys and values. As in the ring, block b's first pass drops block b - window_blocks,
and a pass of block b sees the cached blocks before it and itself.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from world_model.families.base.sampler import Known
from world_model.families.dreamzero.torch.sampler import guide
from world_model.families.lingbot_va.layout import LingBotVASpec, frame_positions
from world_model.families.lingbot_va.sampler import check_settings, levels
from world_model.families.lingbot_va.torch.network import KeysValues, Network
from world_model.layers import rotary


@dataclasses.dataclass(frozen=True)
class Session:
    """One episode under way."""

    context: tuple
    cache: dict[int, KeysValues] = dataclasses.field(default_factory=dict)  # changes from pass to pass
    chunk: int = 0  # number of the chunk that is predicted and then observed
    frame: int = 0  # its first latent frame, counted from the episode's start

    def next(self, frames: int) -> "Session":
        """On to the next chunk, after one of `frames` latent frames."""
        return dataclasses.replace(self, chunk=self.chunk + 1, frame=self.frame + frames)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Settings as in lingbot_va_rollout.LingBotVARollout."""

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
        session = self.start(text, unconditional_text)
        latents, actions = [], []
        for chunk, (video_noise, action_noise) in enumerate(noise):
            video, action = self.predict(session, video_noise, action_noise, first_latents if chunk == 0 else None)
            latents.append(video)
            actions.append(action)
            first, count, n = session.frame, video.shape[1], self.spec.actions_per_frame
            if history is not None and chunk + 1 < len(noise):
                self.observe(session, history[0][:, first:first + count], history[1][:, first * n:(first + count) * n])
            session = session.next(count)
        return torch.cat(latents, 1), torch.cat(actions, 1)

    def start(self, text: Tensor, unconditional_text: Tensor | None = None) -> Session:
        """An empty cache. With guidance both branches are one batch, the conditional one first."""
        if self.guided:
            if unconditional_text is None:
                raise ValueError("guidance other than 1 needs unconditional_text")
            text = torch.cat([text, unconditional_text])
        with torch.no_grad():
            return Session(self.network.context(text))

    @torch.no_grad()
    def predict(self, session: Session, noise: Tensor, action_noise: Tensor, first_latents: Tensor | None = None,
                action_mask: Tensor | None = None, known: Known | None = None) -> tuple[Tensor, Tensor]:
        """(latents, actions) of the next chunk; action_mask bool [B, A], channels that this robot has. What is known
        goes straight from its noise to its value."""
        kept = torch.zeros(noise.shape[1], dtype=torch.bool, device=noise.device)
        kept[0] = first_latents is not None
        group = kept.repeat_interleave(self.spec.actions_per_frame)[:, None]

        def keep_video(x):
            return x if first_latents is None else torch.where(kept[:, None, None, None], first_latents, x)

        def keep_actions(x):
            shown = ~group if action_mask is None else ~group & action_mask[:, None]
            return torch.where(shown, x, 0)

        of_video, of_actions = (levels(self.steps, self.shift, self.executed_steps),
                                levels(self.action_steps, self.action_shift))
        straight = (None, None) if known is None else (
            (known.latent_mask, (known.latents - noise) / float(of_video[1].sum())),
            (known.action_mask, (known.actions - action_noise) / float(of_actions[1].sum())))
        latents = self._denoise(session, True, noise, keep_video, kept, of_video, straight[0])
        return latents, self._denoise(session, False, action_noise, keep_actions, kept, of_actions, straight[1])

    @torch.no_grad()
    def observe(self, session: Session, latents: Tensor, actions: Tensor) -> None:
        """What really happened in the chunk replaces what was predicted of it."""
        clean = latents.new_zeros(latents.shape[:2])
        self.run_pass(session, True, latents, clean)
        self.run_pass(session, False, actions, clean)

    @torch.no_grad()
    def run_pass(self, session: Session, of_video: bool, x: Tensor, timesteps: Tensor) -> Tensor:
        """Velocity of the chunk's video [B, K, h, w, C] or actions, at timesteps [B, K]; what it wrote stays in the
        cache."""
        block, frames = 2 * session.chunk + (not of_video), timesteps.shape[1]
        positions = frame_positions(self.spec, of_video, range(session.frame, session.frame + frames))
        angles = rotary.position_angles(*positions, self.spec.head_dim).astype("float32").astype("float64")
        seen = [session.cache[b] for b in sorted(session.cache) if block - self.window_blocks < b < block]
        past = [tuple(torch.cat(parts, 1) for parts in zip(*layer, strict=True))
                for layer in zip(*seen, strict=True)] or None
        run = self.network.video if of_video else self.network.actions
        velocity, own = run(self._both(x), self._both(timesteps), torch.from_numpy(angles).to(x.device),
                            session.context, past)
        session.cache.pop(block - self.window_blocks, None)
        session.cache[block] = own
        return velocity

    def _denoise(self, session: Session, of_video: bool, x: Tensor, keep, kept: Tensor, of_pass, straight) -> Tensor:
        """Euler steps; the last pass is what stays in the cache. straight: (mask, velocity) of what is known."""
        for time, change in zip(*of_pass, strict=True):
            x = keep(x)
            timesteps = torch.where(kept, 0.0, float(time)).float().expand(len(x), -1)
            velocity = self.run_pass(session, of_video, x, timesteps)
            if self.guided:
                velocity = guide(velocity, self.guidance if of_video else self.action_guidance)
            x = x + float(change) * (velocity if straight is None else torch.where(*straight, velocity))
        return keep(x)

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch runs."""
        return (self.guidance, self.action_guidance) != (1, 1)

    def _both(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if self.guided else x
