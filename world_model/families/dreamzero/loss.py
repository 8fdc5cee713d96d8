"""DreamZero's training loss (arXiv 2602.15922, section 3): velocities of video and actions at sampled noise levels."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from world_model.diffusion import flow_matching
from world_model.families.base.loss import by_level, normal
from world_model.families.dreamzero.model import ForwardInputs
from world_model.families.wan.inputs import Example
from world_model.families.wan.loss import VideoLoss, frame_errors, lower_level
from world_model.functional import bind

USE_LEVELS, USE_VIDEO_NOISE, USE_ACTION_NOISE, USE_GIVEN = range(4)


class Sampled(NamedTuple):
    """All that is random in one batch."""

    video_index: jax.Array  # int32 [B, F], indices of noise levels
    action_index: jax.Array  # int32 [B, N]
    noise: jax.Array  # [B, F, h, w, C]
    action_noise: jax.Array  # [B, N, action_dim]
    given: jax.Array | None = None  # bool [B, N]: actions without noise or loss, from which video is predicted


@dataclasses.dataclass(frozen=True)
class DreamZeroLoss(VideoLoss):
    """A block has one noise level, which its actions share or do not (`noise.schedule`)."""

    schedule: str = "coupled"
    forward_dynamics: float = 0.0  # share of blocks whose video is predicted from their actions
    shift: float = 5.0
    video_alpha: float = 3.0
    video_beta: float = 1.0

    def count(self, batch: dict) -> dict:
        """See `Loss`."""
        frames, mask = self.latent_frame_mask(batch).sum() * 1.0, batch["action_mask"]
        actions = mask.sum() if self.action_average == "valid" else mask.size
        return {"frames": jnp.maximum(frames, 1), "actions": jnp.maximum(actions * 1.0, 1)}

    def sample(self, keys, example: Example, key: jax.Array) -> Sampled:
        """See `Loss`: levels and noise of each sample."""
        video_index, action_index = self.levels(keys(USE_LEVELS))
        layout, given = self.model.spec.layout, None
        if self.forward_dynamics:
            blocks = jax.vmap(lambda k: jax.random.bernoulli(k, self.forward_dynamics, (layout.num_blocks,)))
            given = jnp.repeat(blocks(keys(USE_GIVEN)), layout.actions_per_block, axis=1)
        return Sampled(video_index, action_index, normal(keys(USE_VIDEO_NOISE), example.latents.shape[1:]),
                       normal(keys(USE_ACTION_NOISE), example.actions.shape[1:]), given)

    def levels(self, keys):
        """Level indices int32 [B, F] and [B, N]."""
        layout = self.model.spec.layout

        def of_sample(key):
            return flow_matching.sample_levels(
                key, num_blocks=layout.num_blocks, frames_per_block=layout.frames_per_block,
                actions_per_block=layout.actions_per_block, schedule=self.schedule, alpha=self.video_alpha,
                beta=self.video_beta)

        return jax.vmap(of_sample)(keys)

    def predict(self, params, example: Example, sampled: Sampled):
        """See `Loss`."""
        video_index, action_index, noise, action_noise, given = sampled
        sigmas, timesteps, _ = self.level_tables(self.shift)
        action_sigma, action_timestep = (
            table[action_index] if given is None else jnp.where(given, 0, table[action_index])
            for table in (sigmas, timesteps))
        found = bind(self.model, params)(ForwardInputs(
            noisy_latents=flow_matching.add_noise(example.latents, noise, sigmas[video_index]),
            video_timestep=timesteps[video_index], text=example.text, image=example.image,
            clean_latents=example.latents, condition=example.condition,
            noisy_actions=flow_matching.add_noise(example.actions, action_noise, action_sigma),
            action_timestep=action_timestep, state=example.state, frame_valid=example.frame_valid,
            action_valid=example.action_valid))
        return found._asdict(), None

    def quieter(self, sampled: Sampled, by: float, streams: set[str]):
        """See `Loss`."""
        sigmas, *_ = self.level_tables(self.shift)
        video, video_ratio = lower_level(sampled.video_index, by * ("video" in streams), sigmas)
        action, action_ratio = lower_level(sampled.action_index, by * ("action" in streams), sigmas)
        return (sampled._replace(video_index=video, action_index=action),
                {"video": video_ratio[..., None, None, None], "action": action_ratio[..., None]})

    def loss_of(self, predicted, targets, example: Example, sampled: Sampled, counts):
        """See `Loss`: errors of both velocities, weighed by noise level."""
        video_index, action_index, *_, given = sampled
        action_mask = example.action_mask if given is None else example.action_mask & ~given[..., None]
        sigmas, _, weights = self.level_tables(self.shift)
        video_error = frame_errors(predicted[0]["video"], targets["video"])
        action_error = jnp.square(predicted[0]["action"].astype(jnp.float32) - targets["action"])
        frame_weight = example.frame_valid * weights[video_index]
        action_weight = action_mask * weights[action_index][..., None]
        video_loss = (video_error * frame_weight).sum() / counts["frames"]
        action_loss = (action_error * action_weight).sum() / counts["actions"]
        loss = self.video_weight * video_loss + self.action_weight * action_loss
        metrics = {"video_loss": video_loss, "action_loss": action_loss}
        metrics |= by_level("video", video_error, example.frame_valid, sigmas[video_index])
        metrics |= by_level("action", action_error, action_mask, sigmas[action_index][..., None])
        return loss, metrics
