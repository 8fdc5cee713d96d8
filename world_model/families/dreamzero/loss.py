"""DreamZero's training objective (facts/dreamzero.md, section c)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from world_model.diffusion import flow_matching
from world_model.families.base.loss import Example, Objective, by_level, frame_errors, normal
from world_model.families.base.sampler import Conditions
from world_model.families.dreamzero.model import MASK_CHANNELS, Inputs
from world_model.functional import bind

USE_LEVELS, USE_VIDEO_NOISE, USE_ACTION_NOISE = range(3)


class Drawn(NamedTuple):
    """All that is random in one batch."""

    video_index: jax.Array  # int32 [B, F], of noise levels
    action_index: jax.Array  # int32 [B, N]
    noise: jax.Array  # [B, F, h, w, C]
    action_noise: jax.Array  # [B, N, action_dim]


@dataclasses.dataclass(frozen=True)
class DreamZeroObjective(Objective):
    """One draw of noise levels per block, shared with its actions or apart (`noise.schedule`)."""

    schedule: str = "coupled"
    shift: float = 5.0
    video_alpha: float = 3.0
    video_beta: float = 1.0

    def features(self, batch: dict):
        """(latents, condition, text, image) by the frozen encoders."""
        latents, _, text, _ = super().features(batch)
        condition, image = self._of_first(batch["video"][:, :1], batch["video"].shape[1])
        return latents, condition, text, image

    def begin(self, frames, text_ids, text_length) -> Conditions:
        """See `Objective`."""
        begun = super().begin(frames, text_ids, text_length)
        condition, image = self._of_first(frames, self.model.spec.layout.frames)
        return begun._replace(condition=condition, image=image)

    def _of_first(self, frame, count: int):
        """(condition of `count` frames, image features), None where the model has none, from uint8 [B, 1, H, W, 3]."""
        spec, first, condition, image = self.model.spec, frame.astype(jnp.float32) / 127.5 - 1, None, None
        if spec.image_dim and not self.image_encoder:
            raise ValueError(f"model.image_dim = {spec.image_dim}, but no encoder gives image features; set "
                             "model.image_dim = 0, or encoders.image")
        if spec.image_dim:
            image = self.image_encoder.encode(self.frozen["image"], first[:, 0])
        if spec.concat_first_frame:
            condition = self.condition(self.codec.encode_first(self.frozen["video"], first, count))
        return condition, image

    def stored(self, batch: dict):
        """(latents, condition, text, image) as precomputed."""
        latents, _, text, _ = super().stored(batch)
        field = lambda name: batch[name].astype(jnp.float32)
        condition = self.condition(field("first_latents")) if self.model.spec.concat_first_frame else None
        return latents, condition, text, field("image_features") if self.model.spec.image_dim else None

    def condition(self, latents):
        """[B, F, h, w, 4 + C]: 1 in the mask of frame 0, then latents of the first frame followed by mid-grey."""
        mask = jnp.zeros((*latents.shape[:-1], MASK_CHANNELS)).at[:, 0].set(1)
        return jnp.concatenate([mask, latents], axis=-1)

    def count(self, batch: dict) -> dict:
        """Denominators, of the whole global batch."""
        frames = batch["frame_mask"][:, ::4].sum() * 1.0  # a latent frame is valid iff its last raw frame is
        mask = batch["action_mask"]
        actions = mask.sum() if self.action_average == "valid" else mask.size
        return {"frames": jnp.maximum(frames, 1), "actions": jnp.maximum(actions * 1.0, 1)}

    def draw(self, keys, example: Example, key: jax.Array) -> Drawn:
        """Levels and noise of each sample."""
        video_index, action_index = self.levels(keys(USE_LEVELS))
        return Drawn(video_index, action_index, normal(keys(USE_VIDEO_NOISE), example.latents.shape[1:]),
                     normal(keys(USE_ACTION_NOISE), example.actions.shape[1:]))

    def levels(self, keys):
        """Level indices int32 [B, F] and [B, N]."""
        layout = self.model.spec.layout
        draw = lambda key: flow_matching.sample_levels(
            key, num_blocks=layout.num_blocks, frames_per_block=layout.frames_per_block,
            actions_per_block=layout.actions_per_block, schedule=self.schedule, alpha=self.video_alpha,
            beta=self.video_beta)
        return jax.vmap(draw)(keys)

    def loss_at(self, params, example: Example, drawn: Drawn, counts):
        """The loss of given noise: errors of both velocities, weighed by noise level."""
        video_index, action_index, noise, action_noise = drawn
        sigmas, timesteps, weights = self.level_tables(self.shift)
        predicted = bind(self.model, params)(Inputs(
            noisy_latents=flow_matching.add_noise(example.latents, noise, sigmas[video_index]),
            video_timestep=timesteps[video_index], text=example.text, image=example.image,
            clean_latents=example.latents, condition=example.condition,
            noisy_actions=flow_matching.add_noise(example.actions, action_noise, sigmas[action_index]),
            action_timestep=timesteps[action_index], state=example.state, frame_valid=example.frame_valid,
            action_valid=example.action_valid))
        video_error = frame_errors(predicted.video, flow_matching.velocity(example.latents, noise))
        action_error = jnp.square(predicted.action.astype(jnp.float32)
                                  - flow_matching.velocity(example.actions, action_noise))
        frame_weight = example.frame_valid * weights[video_index]
        action_weight = example.action_mask * weights[action_index][..., None]
        video_loss = (video_error * frame_weight).sum() / counts["frames"]
        action_loss = (action_error * action_weight).sum() / counts["actions"]
        loss = self.video_weight * video_loss + self.action_weight * action_loss
        metrics = {"video_loss": video_loss, "action_loss": action_loss}
        metrics |= by_level("video", video_error, example.frame_valid, sigmas[video_index])
        metrics |= by_level("action", action_error, example.action_mask, sigmas[action_index][..., None])
        return loss, metrics
