"""LingBot-VA's training loss (arXiv 2601.21998, section 3; docs/references/lingbot_va.md).

Chunk size and window are sampled once a step. Every latent frame has its own noise level, its actions another one.
With a coin the clean copy of the video is noised as well, each frame at its own level, and the level is told to the
model: this is what later lets actions be read off a half-denoised video. Losses are means over frames.

With another coin, one for the step, video is predicted from its own chunk's actions as well: L_fdm (arXiv 2601.21998,
Eq. 13), by which a rollout imagines what the actions that are being executed will lead to. The paper adds it in
post-training as a second term; here it takes the place of the video loss in its share of the steps, at no cost. In such
a step no clean action sees its chunk's video, earlier chunks' neither, while a rollout's cache holds those that did.

As released, an episode's first frame is denoised like the rest, from nothing, although every rollout gives it, at level
0 among the frames of its chunk. `given_first_frame` trains what is rolled out: the first frame has level 0 and no loss.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.diffusion.flow_matching import add_noise
from world_model.families.base.loss import by_level, normal
from world_model.families.lingbot_va.forward_inputs import ForwardInputs
from world_model.families.lingbot_va.steps import HISTORY_LEVELS, LEVELS
from world_model.families.wan.inputs import Example
from world_model.families.wan.loss import VideoLoss, frame_errors, lower_level
from world_model.functional import bind

EMPTY = 1e-6  # added to the count of a frame's real action values
(USE_VIDEO_LEVELS, USE_ACTION_LEVELS, USE_HISTORY_LEVELS, USE_HISTORY_COIN, USE_VIDEO_NOISE, USE_ACTION_NOISE,
 USE_HISTORY_NOISE, USE_TEXT, USE_CHUNK, USE_WINDOW, USE_FORWARD) = range(11)


class Sampled(NamedTuple):
    """All that is random in one batch."""

    video_index: jax.Array  # int32 [B, F], of noise levels
    action_index: jax.Array  # int32 [B, F]
    history_index: jax.Array  # int32 [B, F], of the clean copy of the video
    history: jax.Array  # bool [B]: whether that copy is noised
    noise: jax.Array  # [B, F, h, w, C]
    action_noise: jax.Array  # [B, N, action_dim]
    history_noise: jax.Array  # [B, F, h, w, C]
    no_text: jax.Array  # bool [B]: the prompt gives way to the empty one
    chunk_frames: jax.Array  # int32, K
    window_blocks: jax.Array  # int32, W
    forward_dynamics: jax.Array | None = None  # bool, where it is sampled at all


@dataclasses.dataclass(frozen=True)
class LingBotVALoss(VideoLoss):
    """Per-frame levels for both modalities."""

    shift: float = 5.0  # shift of the video's levels
    action_shift: float = 1.0
    history: float = 0.5  # probability of noising the clean video
    text_dropout: float = 0.1  # probability of the empty prompt
    shared_levels: bool = False  # the same levels and coin for the whole batch
    forward_dynamics: float = 0.0  # probability of a step in which video sees its own chunk's actions
    given_first_frame: bool = False  # level 0 and no loss for it, as rollouts have it

    def count(self, batch: dict) -> dict:
        """See `Loss`: latent frames, and those with real actions (or all as well)."""
        frames = self.predicted(self.latent_frame_mask(batch))
        with_actions = batch["action_mask"].reshape(len(frames), frames.shape[1] - 1, -1).any(axis=-1)
        actions = with_actions.sum() if self.action_average == "valid" else frames.size
        return {"frames": jnp.maximum(frames.sum() * 1.0, 1), "actions": jnp.maximum(actions * 1.0, 1)}

    def sample(self, keys, example: Example, key: jax.Array) -> Sampled:
        """See `Loss`: levels, coins and noise of each sample; K and W of the step."""
        batch, frames = example.frame_valid.shape

        def of_step(use: int):
            return jax.random.fold_in(key, use)

        def level_keys(use: int):
            return jnp.broadcast_to(of_step(use), (batch,)) if self.shared_levels else keys(use)

        def index(use: int, low: int = 0):
            return jax.vmap(lambda k: jax.random.randint(k, (frames,), low, LEVELS))(level_keys(use))

        def coin(keys, p: float):
            return jax.vmap(lambda k: jax.random.bernoulli(k, p))(keys)

        def once(use: int, low: int, high: int):
            return jax.random.randint(of_step(use), (), low, high + 1)

        video, spec, forward = example.latents.shape[1:], self.model.spec, None
        if self.forward_dynamics:
            forward = jax.random.bernoulli(of_step(USE_FORWARD), self.forward_dynamics)
        return Sampled(
            index(USE_VIDEO_LEVELS), index(USE_ACTION_LEVELS), index(USE_HISTORY_LEVELS, HISTORY_LEVELS.start),
            coin(level_keys(USE_HISTORY_COIN), self.history), normal(keys(USE_VIDEO_NOISE), video),
            normal(keys(USE_ACTION_NOISE), example.actions.shape[1:]), normal(keys(USE_HISTORY_NOISE), video),
            coin(keys(USE_TEXT), self.text_dropout), once(USE_CHUNK, 1, spec.max_chunk_frames),
            once(USE_WINDOW, spec.min_window_blocks, spec.max_window_blocks), forward)

    def inputs(self, example: Example, sampled: Sampled) -> ForwardInputs:
        """What the model is given. Masked action channels are zero in everything that it sees."""
        sigmas, timesteps, _ = self.level_tables(self.shift)
        video_sigma, video_timestep, _ = self.levels(sampled.video_index, self.shift)
        action_sigma, action_timestep, _ = self.levels(sampled.action_index, self.action_shift)
        n = self.model.spec.actions_per_frame
        coin, mask = sampled.history[:, None], example.action_mask
        sigma = jnp.where(coin, sigmas[sampled.history_index], 0)
        noisy = add_noise(example.actions, sampled.action_noise, jnp.repeat(action_sigma, n, axis=1))
        text = example.text
        if self.text_dropout:
            text = jnp.where(sampled.no_text[:, None, None], example.empty_text, text)
        return ForwardInputs(
            noisy_latents=add_noise(example.latents, sampled.noise, video_sigma), video_timestep=video_timestep,
            clean_latents=add_noise(example.latents, sampled.history_noise, sigma),
            clean_timestep=jnp.where(coin, timesteps[sampled.history_index], 0),
            noisy_actions=jnp.where(mask, noisy, 0), action_timestep=action_timestep,
            clean_actions=jnp.where(mask, example.actions, 0), text=text, chunk_frames=sampled.chunk_frames,
            window_blocks=sampled.window_blocks, frame_valid=example.frame_valid, action_valid=example.action_valid,
            forward_dynamics=sampled.forward_dynamics)

    def predict(self, params, example: Example, sampled: Sampled):
        """See `Loss`."""
        return bind(self.model, params)(self.inputs(example, sampled))._asdict(), None

    def quieter(self, sampled: Sampled, by: float, streams: set[str]):
        """See `Loss`. A given frame has no noise at either level."""
        video, ratio = lower_level(sampled.video_index, by * ("video" in streams), self.level_tables(self.shift)[0])
        action, action_ratio = lower_level(sampled.action_index, by * ("action" in streams),
                                           self.level_tables(self.action_shift)[0])
        action_ratio = jnp.repeat(action_ratio, self.model.spec.actions_per_frame, axis=1)
        return (sampled._replace(video_index=video, action_index=action),
                {"video": ratio[..., None, None, None], "action": action_ratio[..., None]})

    def loss_of(self, predicted, targets, example: Example, sampled: Sampled, counts):
        """See `Loss`: errors of both velocities per frame, weighed by noise level."""
        counted = self.predicted(example.frame_valid)
        video_error, action_error = self.errors(predicted[0], targets, example)
        video_weight, action_weight = self.weights(sampled)
        video_loss = (video_error * video_weight * counted).sum() / counts["frames"]
        action_loss = (self.action_frames(action_error, example) * action_weight).sum() / counts["actions"]
        metrics = {"video_loss": video_loss, "action_loss": action_loss}
        if sampled.forward_dynamics is not None:
            of_forward = sampled.forward_dynamics * counted
            metrics |= {"forward_dynamics_loss/sum": (video_error * video_weight * of_forward).sum(),
                        "forward_dynamics_loss/count": of_forward.sum() * 1.0}
        (sigma, *_), (action_sigma, *_) = (self.levels(sampled.video_index, self.shift),
                                           self.levels(sampled.action_index, self.action_shift))
        of_action = jnp.repeat(action_sigma, self.model.spec.actions_per_frame, axis=1)
        metrics |= by_level("video", video_error, counted, sigma)
        metrics |= by_level("action", action_error, example.action_mask, of_action[..., None])
        return self.video_weight * video_loss + self.action_weight * action_loss, metrics

    def predicted(self, frame_valid):
        """bool [B, F]: frames whose velocity counts."""
        return frame_valid & ~self.given(frame_valid.shape[1])

    def given(self, frames: int) -> np.ndarray:
        """bool [F]: frames that are given, not predicted."""
        return (np.arange(frames) == 0) & self.given_first_frame

    def levels(self, index, shift: float):
        """(sigma, timestep, loss weight), each float32 [B, F], of sampled level indices."""
        given = self.given(index.shape[1])
        return tuple(jnp.where(given, 0, table[index]) for table in self.level_tables(shift))

    def errors(self, velocities: dict, targets: dict, example: Example):
        """Squared errors: of video per frame [B, F], of actions [B, N, action_dim], zero where masked."""
        action = jnp.square(velocities["action"].astype(jnp.float32) - targets["action"])
        return frame_errors(velocities["video"], targets["video"]), jnp.where(example.action_mask, action, 0)

    def weights(self, sampled: Sampled):
        """Loss weights [B, F] of the video's and of the actions' levels."""
        return self.levels(sampled.video_index, self.shift)[2], self.levels(sampled.action_index, self.action_shift)[2]

    def action_frames(self, error, example: Example):
        """[B, N, action_dim] -> [B, F]: mean over a frame's real values; 0 where it has none."""
        def of_frame(x):
            return x.reshape(len(x), -1, self.model.spec.actions_per_frame * x.shape[-1]).sum(axis=-1)

        return of_frame(error) / (of_frame(example.action_mask) + EMPTY)
