"""LingBot-VA's rollout: per chunk a loop over the video, then one over its actions, each ending in a cache write.

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
from world_model.families.base.sampler import Conditions, Guided, Known, Prediction, Schedule
from world_model.families.lingbot_va import cached
from world_model.families.lingbot_va.layout import LingBotVASpec, frame_rotary
from world_model.families.lingbot_va.loss import HISTORY_LEVELS
from world_model.families.lingbot_va.model import LingBotVA
from world_model.functional import bind


class Session(NamedTuple):
    """One episode under way."""

    context: cached.Context
    ring: cached.Ring
    chunk: int = 0  # number of the chunk that is predicted and then observed
    frame: int = 0  # its first latent frame, counted from the episode's start

    def next(self, frames: int) -> "Session":
        """On to the next chunk, after one of `frames` latent frames."""
        return self._replace(chunk=self.chunk + 1, frame=self.frame + frames)


@dataclasses.dataclass(frozen=True)
class LingBotVARollout(Guided):
    """A compiled rollout: whole windows by calling it, or chunk by chunk: start, then predict and observe."""

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
    def video_passes(self) -> tuple[np.ndarray, np.ndarray]:
        """See `levels`."""
        return levels(self.steps, self.shift, self.executed_steps)

    @property
    def action_passes(self) -> tuple[np.ndarray, np.ndarray]:
        """See `levels`."""
        return levels(self.action_steps, self.action_shift)

    def schedules(self) -> dict[str, Schedule]:
        """Of video and actions, as denoised; the pass that only writes the cache is none of the steps."""
        found = {}
        for part, (times, changes) in (("video", self.video_passes), ("action", self.action_passes)):
            steps = np.flatnonzero(changes)
            sigmas = times[0] / 1000 + np.append(0, np.cumsum(changes[steps], dtype=np.float64))
            found[part] = Schedule(sigmas, (True,) * len(steps))
        return found

    # --- whole windows -----------------------------------------------------------------------------------------

    def __call__(self, params: dict, conditions: Conditions, keys, history=None,
                 video_alone: bool = False) -> Prediction:
        """keys: one per sample [B]. history: real latents [B, F, h, w, C], with conditions.actions [B, F n, A]; or
        None. Predicted actions leave group 0 out: [B, (F - 1) n, A].

        video_alone: neither predicts nor remembers actions, as in a clip without them.
        """
        spec, n = self.model.spec, self.model.spec.actions_per_frame
        mask = None if conditions.action_mask is None else conditions.action_mask.any(axis=1)
        session = self.start(params, conditions.text, conditions.unconditional_text)
        latents, actions = [], []
        for frames in self.chunks():
            first, count = frames.start, frames.stop - frames.start
            noise, action_noise = self.noise(keys, session.chunk, count)
            given = conditions.first_latents if first == 0 else None
            video, action, session = self.predict(
                params, session, noise, None if video_alone else action_noise, mask, given)
            latents.append(video)
            actions.append(action)
            if history is not None and frames.stop < spec.layout.latent_frames:
                executed = None if video_alone else conditions.actions[:, first * n:frames.stop * n]
                session = self.observe(params, session, history[:, frames], executed)
            session = session.next(count)
        actions = None if video_alone else jnp.concatenate(actions, axis=1)[:, n:]
        return Prediction(jnp.concatenate(latents, axis=1), actions)

    def chunks(self) -> list[slice]:
        """The latent frames of every chunk of a window; the last may be short."""
        frames = self.model.spec.layout.latent_frames
        return [slice(first, min(first + self.chunk_frames, frames)) for first in range(0, frames, self.chunk_frames)]

    def noise(self, keys, chunk: int, frames: int):
        """Initial video and action noise of a chunk, a function of each sample's key."""
        spec = self.model.spec
        shapes = ((frames, spec.latent_height, spec.latent_width, spec.latent_channels),
                  (frames * spec.actions_per_frame, spec.action_dim))
        draw = lambda key: tuple(jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, chunk), i), shape)
                                 for i, shape in enumerate(shapes))
        return jax.vmap(draw)(keys)

    # --- chunk by chunk ----------------------------------------------------------------------------------------

    def start(self, params: dict, text, unconditional_text=None) -> Session:
        """An empty cache. text [B, Lt, text_dim]; with guidance both branches are one batch, conditional first."""
        if self.guided and unconditional_text is None:
            raise ValueError("guidance other than 1 needs unconditional_text")
        text = self.branches(text, unconditional_text)
        ring = cached.make_ring(self.model.spec, len(text), self.chunk_frames, self.window_blocks,
                                params["patch_embedding.kernel"].dtype)
        return Session(self._context(params, text), ring)

    def predict(self, params: dict, session: Session, noise, action_noise, action_mask=None, first_latents=None,
                rotary=None, known: Known | None = None):
        """(latents [B, K, h, w, C], actions [B, K n, A], session) of the next chunk.

        action_mask: bool [B, A], channels that this robot has. first_latents: [B, 1, h, w, C], the observation, in
        an episode's first chunk; there action group 0 is zero. rotary: that of `rotary`, where session.frame is traced.
        known: of the chunk; given video makes it inverse dynamics (for forward dynamics see `ground`). Without
        action_noise (None) the video alone is predicted, and nothing stands in the cache for its actions.
        """
        frames, start = noise.shape[1], first_latents is not None
        kept = (np.arange(frames) == 0) & start
        given = jnp.broadcast_to(first_latents, noise.shape) if start else jnp.zeros_like(noise)
        of_video, of_actions = rotary or self.rotary(session.frame, frames)
        latents, ring = self._video(params, session.ring, session.context, noise, given, kept, of_video,
                                    2 * session.chunk, known=known)
        if action_noise is None:
            return latents, None, session._replace(ring=ring)
        mask = jnp.ones(action_noise.shape[::2], bool) if action_mask is None else action_mask
        actions, ring = self._actions(params, ring, session.context, action_noise, mask, kept, of_actions,
                                      2 * session.chunk + 1, known)
        return latents, actions, session._replace(ring=ring)

    def observe(self, params: dict, session: Session, latents, actions, rotary=None) -> Session:
        """What really happened in the chunk replaces what was predicted of it: latents [B, K, h, w, C], executed
        actions [B, K n, A], normalised, zero on channels that the robot lacks; None: nobody acts. rotary as in
        `predict`."""
        ring = self._observe(params, session.ring, session.context, latents, actions,
                             *(rotary or self.rotary(session.frame, latents.shape[1])), session.chunk)
        return session._replace(ring=ring)

    def ground(self, params: dict, session: Session, noise, actions, first_latents=None):
        """(imagined latents [B, K, h, w, C], session) while the chunk's actions [B, K n, A] are being executed and
        what they lead to is not seen yet: the next chunk is then predicted from `session.next(K)`.

        Forward dynamics (arXiv 2601.21998, Algorithm 2): video is imagined from the last observation and the actions
        on their way; what was predicted of it before gives way. Call `observe` on the session from before, once the
        observation is there.
        """
        frames, start = noise.shape[1], first_latents is not None
        kept = (np.arange(frames) == 0) & start
        given = jnp.broadcast_to(first_latents, noise.shape) if start else jnp.zeros_like(noise)
        (of_video, of_actions), block = self.rotary(session.frame, frames), 2 * session.chunk
        ring = self._acting(params, session.ring, session.context, actions, of_actions, block)
        latents, _ = self._video(params, ring, session.context, noise, given, kept, of_video, block, 1)
        return latents, self.observe(params, session, latents, actions)

    def rotary(self, first: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Tables of a chunk's video and of its actions, from latent frame `first` on."""
        frames = range(first, first + frames)
        return frame_rotary(self.model.spec, True, frames), frame_rotary(self.model.spec, False, frames)

    @functools.partial(jax.jit, static_argnums=0)
    def _context(self, params, text):
        return cached.encode_context(bind(self.model, params), text)

    @functools.partial(jax.jit, static_argnums=0)
    def _acting(self, params, ring, context, actions, rotary, block):
        """The ring with the actions of the chunk whose video, `block`, is not known: they do not see it."""
        clean = jnp.zeros((self.both(actions).shape[0], actions.shape[1] // self.model.spec.actions_per_frame))
        return cached.action_pass(bind(self.model, params), cached.forget(ring, block), context, self.both(actions),
                                  clean, rotary, block + 1)[1]

    @functools.partial(jax.jit, static_argnums=(0, 9))
    def _video(self, params, ring, context, noise, given, kept, rotary, block, ahead=0, known: Known | None = None):
        """All passes of a chunk's video; `kept` [K] marks frames that are given, not denoised."""
        of_pass = self.video_passes
        straight = None if known is None else _straight(of_pass, noise, known.latents, known.latent_mask)
        keep = lambda x: jnp.where(kept[:, None, None, None], given, x)
        one = lambda ring, x, time: cached.video_pass(
            bind(self.model, params), ring, context, self.both(x), self.both(time), rotary, block, ahead)
        guide = lambda velocity: self.guide(velocity, self.guidance)
        return _denoise(one, guide, ring, noise, keep, kept, of_pass, straight)

    @functools.partial(jax.jit, static_argnums=0)
    def _actions(self, params, ring, context, noise, mask, kept, rotary, block, known: Known | None = None):
        """The same of its actions."""
        of_pass = self.action_passes
        straight = None if known is None else _straight(of_pass, noise, known.actions, known.action_mask)
        group = jnp.repeat(kept, self.model.spec.actions_per_frame, total_repeat_length=noise.shape[1])
        keep = lambda x: jnp.where(mask[:, None, :] & ~group[:, None], x, 0)
        one = lambda ring, x, time: cached.action_pass(
            bind(self.model, params), ring, context, self.both(x), self.both(time), rotary, block)
        guide = lambda velocity: self.guide(velocity, self.action_guidance)
        return _denoise(one, guide, ring, noise, keep, kept, of_pass, straight)

    @functools.partial(jax.jit, static_argnums=0)
    def _observe(self, params, ring, context, latents, actions, video_rotary, action_rotary, chunk):
        model, clean = bind(self.model, params), jnp.zeros((self.both(latents).shape[0], latents.shape[1]))
        _, ring = cached.video_pass(model, ring, context, self.both(latents), clean, video_rotary, 2 * chunk)
        if actions is None:
            return ring
        return cached.action_pass(model, ring, context, self.both(actions), clean, action_rotary, 2 * chunk + 1)[1]


def check_settings(spec: LingBotVASpec, rollout) -> None:
    """Of this rollout or PyTorch's: warns of what training never drew, which may still be asked for. Raises ValueError
    on what makes no sense."""
    if not 0 <= rollout.executed_steps <= rollout.steps:
        raise ValueError(f"evaluate.executed_steps = {rollout.executed_steps}: expected 0 (all) to solver_steps = "
                         f"{rollout.steps}")
    cached.check_window(rollout.window_blocks)
    _warn("evaluate.chunk_frames", rollout.chunk_frames, 1, spec.max_chunk_frames)
    # Denoising sees one block less than the cache holds.
    _warn("evaluate.window_blocks - 1", rollout.window_blocks - 1, spec.min_window_blocks, spec.max_window_blocks)
    if rollout.executed_steps:
        trained = noise_levels(rollout.shift).sigmas[HISTORY_LEVELS.start]
        sigma = noise_levels(rollout.shift, rollout.steps).sigmas[rollout.executed_steps - 1]
        _warn("noise of partly denoised video", round(float(sigma), 3), 0, round(float(trained), 3))


def levels(steps: int, shift: float, executed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(timestep, change of sigma after it) of every pass: the steps, then one that writes the clean result.

    Of a partial denoising the last step writes the cache at its own level, and steps on from there.
    """
    table = noise_levels(shift, steps)
    times, changes = np.append(table.timesteps, 0), np.append(np.diff(np.append(table.sigmas, 0)), 0)
    passes = executed or steps + 1
    return times[:passes].astype(np.float32), changes[:passes].astype(np.float32)


def _straight(of_pass, noise, value, mask):
    """(mask, velocity) that leads from noise to a known value: Euler steps are exact on it."""
    return mask, (value - noise) / of_pass[1].sum()


def _denoise(one_pass, guide, ring, noise, keep, kept, of_pass, straight=None):
    """(result, ring) of Euler steps. Every pass writes the ring in its own slot, which itself it does not see: what
    stays is the last one."""
    def step(carry, level):
        x, ring = carry
        time, change = level
        x = keep(x)
        velocity, ring = one_pass(ring, x, jnp.broadcast_to(jnp.where(kept, 0, time), (len(x), len(kept))))
        velocity = guide(velocity.astype(jnp.float32))
        if straight is not None:
            velocity = jnp.where(straight[0], straight[1], velocity)
        return (x + change * velocity, ring), None

    (x, ring), _ = jax.lax.scan(step, (noise, ring), of_pass)
    return keep(x), ring


def _warn(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        warnings.warn(f"{name} = {value} lies outside the trained range {low}..{high}", stacklevel=5)
