"""LingBot-VA's sampler: per chunk a loop over the video, then one over its actions, each ending in a cache write.

What was predicted of a chunk gives way to what was observed of it, once that is known (`observe`); without
observations the model goes on from its own predictions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from world_model.diffusion.guidance import Guided
from world_model.diffusion.inpainting import Inpainting
from world_model.families.base.sampler import Prediction, Schedule, sample_noise
from world_model.families.lingbot_va import cached
from world_model.families.lingbot_va.cached import Episode, Ring
from world_model.families.lingbot_va.layout import Modality, frame_rotary
from world_model.families.lingbot_va.model import LingBotVA
from world_model.families.lingbot_va.steps import EulerPasses, GivenFrames, check_settings, denoise, levels
from world_model.families.wan.inputs import Conditions
from world_model.functional import bind


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
    def video_passes(self) -> EulerPasses:
        """The passes of a chunk's video."""
        return levels(self.steps, self.shift, self.executed_steps)

    @property
    def action_passes(self) -> EulerPasses:
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
        given = GivenFrames.of(noise, first_latents)
        video_rotary, action_rotary = rotary or self.rotary(episode.frame, noise.shape[1])
        latents, ring = self._video(params, episode, noise, given, video_rotary, inpainting=inpainting)
        episode = episode._replace(ring=ring)
        if action_noise is None:
            return latents, None, episode
        mask = jnp.ones(action_noise.shape[::2], bool) if action_mask is None else action_mask
        actions, ring = self._actions(params, episode, action_noise, mask, given, action_rotary, inpainting)
        return latents, actions, episode._replace(ring=ring)

    def observe(self, params: dict, episode: Episode, latents, actions, rotary=None) -> Episode:
        """Puts what really happened in the chunk into the place of what was predicted: latents [B, K, h, w, C],
        executed actions [B, K n, A], normalised, zero on channels that the robot lacks; None: nobody acts. rotary as in
        `predict`."""
        rotary = rotary or self.rotary(episode.frame, latents.shape[1])
        return episode._replace(ring=self._observe(params, episode, latents, actions, rotary))

    def ground(self, params: dict, episode: Episode, noise, actions, first_latents=None, rotary=None):
        """(imagined latents [B, K, h, w, C], episode) while the chunk's actions [B, K n, A] are being executed and
        what they lead to is not seen yet: the next chunk is then predicted from `episode.next(K)`.

        Forward dynamics (arXiv 2601.21998, Algorithm 2): video is imagined from the last observation and the actions
        on their way; what was predicted of it before gives way. Call `observe` on the episode from before, once the
        observation is there. rotary as in `predict`.
        """
        rotary = rotary or self.rotary(episode.frame, noise.shape[1])
        acting = episode._replace(ring=self._acting(params, episode, actions, rotary[1]))
        latents, _ = self._video(params, acting, noise, GivenFrames.of(noise, first_latents), rotary[0], ahead=1)
        return latents, self.observe(params, episode, latents, actions, rotary)

    def rotary(self, first: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Tables of a chunk's video and of its actions, from latent frame `first` on."""
        video, action = (frame_rotary(self.model.spec, modality, range(first, first + frames)) for modality in Modality)
        return video, action

    @functools.partial(jax.jit, static_argnums=0)
    def _context(self, params, text):
        return bind(self.model, params).encode_context(text)

    @functools.partial(jax.jit, static_argnums=0)
    def _acting(self, params, episode: Episode, actions, rotary) -> Ring:
        """The ring with the actions of the chunk, whose video is not known: they do not see it."""
        clean = jnp.zeros((self.both(actions).shape[0], actions.shape[1] // self.model.spec.actions_per_frame))
        unseen = episode._replace(ring=cached.hide_block(episode.ring, 2 * episode.chunk))
        return cached.action_pass(bind(self.model, params), unseen, self.both(actions), clean, rotary)[1]

    @functools.partial(jax.jit, static_argnums=0, static_argnames="ahead")
    def _video(self, params, episode: Episode, noise, given: GivenFrames, rotary, ahead=0,
               inpainting: Inpainting | None = None):
        """(latents, ring) after all passes of a chunk's video."""
        def run_pass(ring, x, time):
            x = given.put_into(x)
            velocity, ring = cached.video_pass(bind(self.model, params), episode._replace(ring=ring), self.both(x),
                                               self.both(given.timesteps(time, len(x))), rotary, ahead)
            return x, self.guide(velocity.astype(jnp.float32), self.guidance), ring

        known = inpainting and (inpainting.latents, inpainting.latent_mask)
        x, ring = denoise(run_pass, self.video_passes, episode.ring, noise, known)
        return given.put_into(x), ring

    @functools.partial(jax.jit, static_argnums=0)
    def _actions(self, params, episode: Episode, noise, mask, given: GivenFrames, rotary,
                 inpainting: Inpainting | None = None):
        """(actions, ring) after all passes of a chunk's actions; those of given frames and outside `mask` are zero."""
        group = jnp.repeat(given.mask, self.model.spec.actions_per_frame, total_repeat_length=noise.shape[1])
        free = mask[:, None, :] & ~group[:, None]

        def run_pass(ring, x, time):
            x = jnp.where(free, x, 0)
            velocity, ring = cached.action_pass(bind(self.model, params), episode._replace(ring=ring), self.both(x),
                                                self.both(given.timesteps(time, len(x))), rotary)
            return x, self.guide(velocity.astype(jnp.float32), self.action_guidance), ring

        known = inpainting and (inpainting.actions, inpainting.action_mask)
        x, ring = denoise(run_pass, self.action_passes, episode.ring, noise, known)
        return jnp.where(free, x, 0), ring

    @functools.partial(jax.jit, static_argnums=0)
    def _observe(self, params, episode: Episode, latents, actions, rotary) -> Ring:
        model, clean = bind(self.model, params), jnp.zeros((self.both(latents).shape[0], latents.shape[1]))
        _, ring = cached.video_pass(model, episode, self.both(latents), clean, rotary[0])
        if actions is None:
            return ring
        return cached.action_pass(model, episode._replace(ring=ring), self.both(actions), clean, rotary[1])[1]
