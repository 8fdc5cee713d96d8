"""LingBot-VA's sampler: per chunk a loop over the video, then one over its actions, each ending in a cache write.

What was predicted of a chunk gives way to what was observed of it, once that is known (`observe`); without
observations the model goes on from its own predictions.
"""

import dataclasses
import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.diffusion.flow_matching import noise_levels
from world_model.diffusion.guidance import Guided
from world_model.diffusion.inpainting import Inpainting, straight_velocity
from world_model.families.base.sampler import Prediction, Schedule, sample_noise
from world_model.families.lingbot_va import cached
from world_model.families.lingbot_va.layout import LingBotVASpec, Modality, frame_rotary
from world_model.families.lingbot_va.loss import HISTORY_LEVELS
from world_model.families.lingbot_va.model import LingBotVA
from world_model.families.wan.inputs import Conditions
from world_model.functional import bind


class Episode(NamedTuple):
    """An episode under way: what its cache holds, and where it is."""

    context: cached.Context
    ring: cached.Ring
    chunk: int = 0  # number of the chunk that is predicted and then observed
    frame: int = 0  # its first latent frame, counted from the episode's start

    def next(self, frames: int) -> "Episode":
        """The episode at its next chunk, after one of `frames` latent frames."""
        return self._replace(chunk=self.chunk + 1, frame=self.frame + frames)


class Steps(NamedTuple):
    """The passes of an Euler loop, in order: the steps, then one that writes the clean result (change 0)."""

    timesteps: np.ndarray  # float32 [passes]
    changes: np.ndarray  # float32 [passes]: what sigma changes by after each


@dataclasses.dataclass(frozen=True)
class LingBotVASampler(Guided):
    """A compiled sampler: whole windows by calling it, or chunk by chunk: start, then predict and observe."""

    model: LingBotVA  # abstract: structure without arrays
    steps: int = 20  # Euler steps of the video
    action_steps: int = 50
    shift: float = 5.0
    action_shift: float = 1.0
    chunk_frames: int = 2  # K
    window_blocks: int = 30  # blocks in the cache, two a chunk
    executed_steps: int = 0  # partial denoising: so many of `steps` run, the last writes the cache; 0 = all

    def __post_init__(self):
        super().__post_init__()
        check_settings(self.model.spec, self)

    @property
    def video_passes(self) -> Steps:
        """The passes of a chunk's video."""
        return levels(self.steps, self.shift, self.executed_steps)

    @property
    def action_passes(self) -> Steps:
        """The passes of a chunk's actions."""
        return levels(self.action_steps, self.action_shift)

    def schedules(self) -> dict[str, Schedule]:
        """How video and actions are denoised; the pass that only writes the cache is none of the steps."""
        found = {}
        for part, (times, changes) in (("video", self.video_passes), ("action", self.action_passes)):
            steps = np.flatnonzero(changes)
            sigmas = times[0] / 1000 + np.append(0, np.cumsum(changes[steps], dtype=np.float64))
            found[part] = Schedule(sigmas, (True,) * len(steps))
        return found

    # --- whole windows -----------------------------------------------------------------------------------------

    def __call__(self, params: dict, conditions: Conditions, keys, history=None,
                 video_alone: bool = False) -> Prediction:
        """Predicts a window. keys: one per sample [B]. history: real latents [B, F, h, w, C], with conditions.actions
        [B, F n, A]; or None. Predicted actions leave group 0 out: [B, (F - 1) n, A].

        video_alone: neither predicts nor remembers actions, as in a clip without them.
        """
        spec, n = self.model.spec, self.model.spec.actions_per_frame
        mask = None if conditions.action_mask is None else conditions.action_mask.any(axis=1)
        episode = self.start(params, conditions.text, conditions.unconditional_text)
        latents, actions = [], []
        for frames in self.chunks():
            first, count = frames.start, frames.stop - frames.start
            noise, action_noise = self.noise(keys, episode.chunk, count)
            given = conditions.first_latents if first == 0 else None
            video, action, episode = self.predict(
                params, episode, noise, None if video_alone else action_noise, mask, given)
            latents.append(video)
            actions.append(action)
            if history is not None and frames.stop < spec.layout.latent_frames:
                executed = None if video_alone else conditions.actions[:, first * n:frames.stop * n]
                episode = self.observe(params, episode, history[:, frames], executed)
            episode = episode.next(count)
        actions = None if video_alone else jnp.concatenate(actions, axis=1)[:, n:]
        return Prediction(actions, jnp.concatenate(latents, axis=1))

    def chunks(self) -> list[slice]:
        """The latent frames of every chunk of a window; the last may be short."""
        frames = self.model.spec.layout.latent_frames
        return [slice(first, min(first + self.chunk_frames, frames)) for first in range(0, frames, self.chunk_frames)]

    def noise(self, keys, chunk: int, frames: int):
        """Initial video and action noise of a chunk, a function of each sample's key."""
        spec = self.model.spec
        return sample_noise(keys, chunk, ((frames, *spec.latent_shape),
                                          (frames * spec.actions_per_frame, spec.action_dim)))

    # --- chunk by chunk ----------------------------------------------------------------------------------------

    def start(self, params: dict, text, unconditional_text=None) -> Episode:
        """An empty cache. text [B, Lt, text_dim]; with guidance both branches are one batch, conditional first."""
        if self.guided and unconditional_text is None:
            raise ValueError("guidance other than 1 needs unconditional_text")
        text = self.branches(text, unconditional_text)
        ring = cached.make_ring(self.model.spec, len(text), self.chunk_frames, self.window_blocks,
                                params["patch_embedding.kernel"].dtype)
        return Episode(self._context(params, text), ring)

    def predict(self, params: dict, episode: Episode, noise, action_noise, action_mask=None, first_latents=None,
                rotary=None, inpainting: Inpainting | None = None):
        """(latents [B, K, h, w, C], actions [B, K n, A], episode) of the next chunk.

        action_mask: bool [B, A], channels that this robot has. first_latents: [B, 1, h, w, C], the observation, in
        an episode's first chunk; there action group 0 is zero. rotary: from `rotary`, where episode.frame is traced.
        inpainting: of the chunk; given video makes it inverse dynamics (for forward dynamics see `ground`). Without
        action_noise (None) the video alone is predicted, and nothing stands in the cache for its actions.
        """
        frames, start = noise.shape[1], first_latents is not None
        given = jnp.broadcast_to(first_latents, noise.shape) if start else jnp.zeros_like(noise)
        kept, (video_rotary, action_rotary) = self._kept(frames, start), rotary or self.rotary(episode.frame, frames)
        latents, ring = self._video(params, episode.ring, episode.context, noise, given, kept, video_rotary,
                                    2 * episode.chunk, inpainting=inpainting)
        if action_noise is None:
            return latents, None, episode._replace(ring=ring)
        mask = jnp.ones(action_noise.shape[::2], bool) if action_mask is None else action_mask
        actions, ring = self._actions(params, ring, episode.context, action_noise, mask, kept, action_rotary,
                                      2 * episode.chunk + 1, inpainting)
        return latents, actions, episode._replace(ring=ring)

    def observe(self, params: dict, episode: Episode, latents, actions, rotary=None) -> Episode:
        """Puts what really happened in the chunk into the place of what was predicted: latents [B, K, h, w, C],
        executed actions [B, K n, A], normalised, zero on channels that the robot lacks; None: nobody acts. rotary as in
        `predict`."""
        ring = self._observe(params, episode.ring, episode.context, latents, actions,
                             *(rotary or self.rotary(episode.frame, latents.shape[1])), episode.chunk)
        return episode._replace(ring=ring)

    def ground(self, params: dict, episode: Episode, noise, actions, first_latents=None):
        """(imagined latents [B, K, h, w, C], episode) while the chunk's actions [B, K n, A] are being executed and
        what they lead to is not seen yet: the next chunk is then predicted from `episode.next(K)`.

        Forward dynamics (arXiv 2601.21998, Algorithm 2): video is imagined from the last observation and the actions
        on their way; what was predicted of it before gives way. Call `observe` on the episode from before, once the
        observation is there.
        """
        frames, start = noise.shape[1], first_latents is not None
        given = jnp.broadcast_to(first_latents, noise.shape) if start else jnp.zeros_like(noise)
        (video_rotary, action_rotary), block = self.rotary(episode.frame, frames), 2 * episode.chunk
        ring = self._acting(params, episode.ring, episode.context, actions, action_rotary, block)
        latents, _ = self._video(params, ring, episode.context, noise, given, self._kept(frames, start), video_rotary,
                                 block, 1)
        return latents, self.observe(params, episode, latents, actions)

    def rotary(self, first: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Tables of a chunk's video and of its actions, from latent frame `first` on."""
        video, action = (frame_rotary(self.model.spec, modality, range(first, first + frames)) for modality in Modality)
        return video, action

    @staticmethod
    def _kept(frames: int, start: bool) -> np.ndarray:
        """bool [K]: frames that are given, not denoised."""
        return (np.arange(frames) == 0) & start

    @functools.partial(jax.jit, static_argnums=0)
    def _context(self, params, text):
        return cached.encode_context(bind(self.model, params), text)

    @functools.partial(jax.jit, static_argnums=0)
    def _acting(self, params, ring, context, actions, rotary, block):
        """The ring with the actions of the chunk whose video, `block`, is not known: they do not see it."""
        clean = jnp.zeros((self.both(actions).shape[0], actions.shape[1] // self.model.spec.actions_per_frame))
        return cached.action_pass(bind(self.model, params), cached.without(ring, block), context, self.both(actions),
                                  clean, rotary, block + 1)[1]

    @functools.partial(jax.jit, static_argnums=(0, 9))
    def _video(self, params, ring, context, noise, given, kept, rotary, block, ahead=0,
               inpainting: Inpainting | None = None):
        """All passes of a chunk's video; `kept` [K] marks frames that are given, not denoised."""
        def run_pass(ring, x, time):
            x = jnp.where(kept[:, None, None, None], given, x)
            velocity, ring = cached.video_pass(bind(self.model, params), ring, context, self.both(x),
                                               self.both(_levels(time, kept, x)), rotary, block, ahead)
            return x, self.guide(velocity.astype(jnp.float32), self.guidance), ring

        known = inpainting and (inpainting.latents, inpainting.latent_mask)
        x, ring = _denoise(run_pass, self.video_passes, ring, noise, known)
        return jnp.where(kept[:, None, None, None], given, x), ring

    @functools.partial(jax.jit, static_argnums=0)
    def _actions(self, params, ring, context, noise, mask, kept, rotary, block, inpainting: Inpainting | None = None):
        """All passes of a chunk's actions; those of given frames, and channels outside `mask`, are zero."""
        group = jnp.repeat(kept, self.model.spec.actions_per_frame, total_repeat_length=noise.shape[1])
        free = mask[:, None, :] & ~group[:, None]

        def run_pass(ring, x, time):
            x = jnp.where(free, x, 0)
            velocity, ring = cached.action_pass(bind(self.model, params), ring, context, self.both(x),
                                                self.both(_levels(time, kept, x)), rotary, block)
            return x, self.guide(velocity.astype(jnp.float32), self.action_guidance), ring

        known = inpainting and (inpainting.actions, inpainting.action_mask)
        x, ring = _denoise(run_pass, self.action_passes, ring, noise, known)
        return jnp.where(free, x, 0), ring

    @functools.partial(jax.jit, static_argnums=0)
    def _observe(self, params, ring, context, latents, actions, video_rotary, action_rotary, chunk):
        model, clean = bind(self.model, params), jnp.zeros((self.both(latents).shape[0], latents.shape[1]))
        _, ring = cached.video_pass(model, ring, context, self.both(latents), clean, video_rotary, 2 * chunk)
        if actions is None:
            return ring
        return cached.action_pass(model, ring, context, self.both(actions), clean, action_rotary, 2 * chunk + 1)[1]


def check_settings(spec: LingBotVASpec, sampler) -> None:
    """Warns of settings of this sampler, or PyTorch's, that training never sampled, which may still be asked for.
    Raises ValueError on those that make no sense."""
    if not 0 <= sampler.executed_steps <= sampler.steps:
        raise ValueError(f"evaluate.executed_steps = {sampler.executed_steps}: expected 0 (all) to solver_steps = "
                         f"{sampler.steps}")
    cached.check_window(sampler.window_blocks)
    _warn("evaluate.chunk_frames", sampler.chunk_frames, 1, spec.max_chunk_frames)
    # Denoising sees one block less than the cache holds.
    _warn("evaluate.window_blocks - 1", sampler.window_blocks - 1, spec.min_window_blocks, spec.max_window_blocks)
    if sampler.executed_steps:
        trained = noise_levels(sampler.shift).sigmas[HISTORY_LEVELS.start]
        sigma = noise_levels(sampler.shift, sampler.steps).sigmas[sampler.executed_steps - 1]
        _warn("noise of partly denoised video", round(float(sigma), 3), 0, round(float(trained), 3))


def levels(steps: int, shift: float, executed: int = 0) -> Steps:
    """The passes of a loop. In a partial denoising (executed > 0) the last step writes the cache at its own level, and
    steps on from there."""
    table = noise_levels(shift, steps)
    times, changes = np.append(table.timesteps, 0), np.append(np.diff(np.append(table.sigmas, 0)), 0)
    passes = executed or steps + 1
    return Steps(times[:passes].astype(np.float32), changes[:passes].astype(np.float32))


def _levels(time, kept, x):
    """Timesteps [B, K]: 0 for frames that are given."""
    return jnp.broadcast_to(jnp.where(kept, 0, time), (len(x), len(kept)))


def _denoise(run_pass, steps: Steps, ring, noise, known: tuple | None):
    """(result, ring) of Euler steps. Every pass writes the ring in its own entry, which itself it does not see: what
    stays is the last one.

    run_pass(ring, x, timestep) -> (x with what is given in its place, velocity, ring); known: (value, mask) of what is
    inpainted.
    """
    straight = known and straight_velocity(noise, known[0], steps.changes.sum())

    def step(carry, level):
        x, ring = carry
        x, velocity, ring = run_pass(ring, x, level[0])
        if known:
            velocity = jnp.where(known[1], straight, velocity)
        return (x + level[1] * velocity, ring), None

    return jax.lax.scan(step, (noise, ring), tuple(steps))[0]


def _warn(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        warnings.warn(f"{name} = {value} lies outside the trained range {low}..{high}", stacklevel=5)
