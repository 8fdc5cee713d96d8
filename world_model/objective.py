"""The training objective: encode, draw noise, predict velocities, weigh the errors (facts/dreamzero.md, section c).

Every draw is a function of (seed, step, use, global sample index): neither mesh nor host count changes it, and a
microbatch draws what its samples would draw in the whole batch.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from world_model import flow_matching
from world_model.encoders import TextEncoder, VideoCodec
from world_model.families import axes
from world_model.families.dreamzero import MASK_CHANNELS, DreamZero, Inputs
from world_model.functional import bind

BUCKETS = 4  # of sigma, for losses by noise level
USE_LEVELS, USE_VIDEO_NOISE, USE_ACTION_NOISE = range(3)


class Example(NamedTuple):
    """A batch after the frozen encoders; float32."""

    latents: jax.Array  # [B, F, h, w, C]
    condition: jax.Array | None  # [B, F, h, w, 4 + C]
    text: jax.Array  # [B, Lt, text_dim]
    image: jax.Array | None  # [B, Li, image_dim], features of the first frame
    frame_valid: jax.Array  # bool [B, F]
    actions: jax.Array  # [B, N, action_dim]; zeros where masked
    action_mask: jax.Array  # bool [B, N, action_dim]
    action_valid: jax.Array  # bool [B, N]
    state: jax.Array  # [B, S, state_dim]; zeros on a video-only clip


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised; plain values from the config."""

    model: DreamZero  # abstract: structure without arrays
    codec: VideoCodec
    text_encoder: TextEncoder
    frozen: dict  # the encoders' arrays: {"video": ..., "text": ...}
    schedule: str = "coupled"
    shift: float = 5.0
    video_alpha: float = 3.0
    video_beta: float = 1.0
    video_weight: float = 1.0
    action_weight: float = 1.0
    weighting: str = "bell"  # bell | uniform
    action_average: str = "slots"  # slots | valid

    def __post_init__(self):
        if self.weighting not in ("bell", "uniform"):
            raise ValueError(f"loss.weighting = {self.weighting!r}: expected bell or uniform")
        if self.action_average not in ("slots", "valid"):
            raise ValueError(f"loss.action_average = {self.action_average!r}: expected slots or valid")

    def encode(self, batch: dict) -> Example:
        """Frozen encoders and masks. A sample without any valid action loses its action slots and state here, so
        that nothing standing in them can reach a video output."""
        latents, condition, text, image = self.stored(batch) if "latents" in batch else self.features(batch)
        first, later = batch["frame_mask"][:, :1], batch["frame_mask"][:, 1:]
        action_valid = batch["action_mask"].any(axis=-1)
        has_action = action_valid.any(axis=-1)[:, None, None]
        return Example(
            latents=latents, condition=condition, text=text, image=image,
            frame_valid=jnp.concatenate([first, later.reshape(len(later), -1, 4).all(axis=-1)], axis=1),
            actions=jnp.where(batch["action_mask"], batch["actions"], 0),
            action_mask=batch["action_mask"],
            action_valid=action_valid,
            state=jnp.where(has_action, batch["state"], 0))

    def features(self, batch: dict):
        """(latents, condition, text, image) by the frozen encoders."""
        if self.model.spec.image_dim:
            raise ValueError(f"model.image_dim = {self.model.spec.image_dim}, but no encoder gives image features; "
                             "set model.image_dim = 0")
        video = batch["video"].astype(jnp.float32) / 127.5 - 1
        text = self.text_encoder.encode(self.frozen["text"], batch["text_ids"], batch["text_length"])
        condition = None
        if self.model.spec.concat_first_frame:
            condition = self.condition(self.codec.encode_first(self.frozen["video"], video[:, :1], video.shape[1]))
        return self.codec.encode(self.frozen["video"], video), condition, text, None

    def stored(self, batch: dict):
        """(latents, condition, text, image) as precomputed."""
        field = lambda name: batch[name].astype(jnp.float32)
        condition = self.condition(field("first_latents")) if self.model.spec.concat_first_frame else None
        image = field("image_features") if self.model.spec.image_dim else None
        return field("latents"), condition, field("text_features"), image

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

    def loss(self, params: dict, batch: dict, key: jax.Array, counts: dict):
        """(loss, metrics); all additive over microbatches of one batch."""
        example = self.encode(batch)
        sample_keys = lambda use: jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, use), i))(
            batch["sample_index"])
        video_index, action_index = self.levels(sample_keys(USE_LEVELS))
        noise = _normal(sample_keys(USE_VIDEO_NOISE), example.latents.shape[1:])
        action_noise = _normal(sample_keys(USE_ACTION_NOISE), example.actions.shape[1:])
        return self.loss_at(params, example, video_index, action_index, noise, action_noise, counts)

    def levels(self, keys):
        """Level indices int32 [B, F] and [B, N]."""
        layout = self.model.spec.layout
        draw = lambda key: flow_matching.draw_levels(
            key, num_blocks=layout.num_blocks, frames_per_block=layout.frames_per_block,
            actions_per_block=layout.actions_per_block, schedule=self.schedule, alpha=self.video_alpha,
            beta=self.video_beta)
        return jax.vmap(draw)(keys)

    def loss_at(self, params, example: Example, video_index, action_index, noise, action_noise, counts):
        """The loss of given noise: errors of both velocities, weighed by noise level."""
        levels = flow_matching.noise_levels(self.shift)
        sigmas, timesteps, weights = (jnp.asarray(table) for table in levels)
        if self.weighting == "uniform":
            weights = jnp.ones_like(weights)
        model = bind(self.model, axes.gathered(params, self.model.spec.dim))
        predicted = model(Inputs(
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


def frame_errors(predicted, target):
    """Mean square per latent frame, float32 [B, F]. An odd target row or column has no prediction and is cropped."""
    target = target[:, :, :predicted.shape[2], :predicted.shape[3]]
    return jnp.square(predicted.astype(jnp.float32) - target).mean(axis=(2, 3, 4))


def by_level(name: str, error, valid, sigma) -> dict:
    """Sums and counts of unweighted errors by range of sigma: "<name>_loss_sigma_<range>/sum" and "/count"."""
    bucket = jnp.minimum((sigma * BUCKETS).astype(jnp.int32), BUCKETS - 1)
    metrics = {}
    for i in range(BUCKETS):
        inside = valid & (bucket == i)
        label = f"{name}_loss_sigma_{i / BUCKETS:.2f}-{(i + 1) / BUCKETS:.2f}"
        metrics |= {f"{label}/sum": jnp.where(inside, error, 0).sum(), f"{label}/count": inside.sum() * 1.0}
    return metrics


def _normal(keys, shape):
    """One draw per sample key: float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
