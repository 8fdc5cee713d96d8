"""DreamZero's sampler: denoises block after block against a cache of clean video (arXiv 2602.15922, section 3)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from world_model.diffusion.guidance import Guided
from world_model.diffusion.inpainting import Inpainting, inpainting_velocity
from world_model.diffusion.solvers import make_solver
from world_model.diffusion.step_skipping import THRESHOLDS, Skipping, make_skipping
from world_model.families.base.sampler import Prediction, Schedule, sample_noise
from world_model.families.dreamzero import cached
from world_model.families.dreamzero.model import DreamZero
from world_model.families.wan.inputs import Conditions
from world_model.families.wan.spec import Velocity
from world_model.functional import bind


@dataclasses.dataclass(frozen=True)
class DreamZeroSampler(Guided):
    """A compiled sampler: call it with parameters, conditions and one key per sample.

    Each block begins as noise, is denoised by all solver steps, and enters the cache before the next block begins.
    Every function compiles once. With `history` the cache is filled with real latents instead, as for a policy whose
    actions were executed.
    """

    model: DreamZero  # abstract: structure without arrays
    solver: str = "unipc"
    steps: int = 16
    shift: float = 5.0
    video_final_sigma: float = 0.0  # DreamZero-Flash leaves the video noisy (0.8)
    skipping: str = "none"  # steps that reuse the last prediction: world_model/diffusion/step_skipping.py
    skip_thresholds: tuple = THRESHOLDS  # (cosine, steps) pairs, for skipping = "adaptive"

    @property
    def solvers(self) -> Velocity:
        """The solvers of video and of actions."""
        return Velocity(make_solver(self.solver, self.steps, self.shift, self.video_final_sigma),
                        make_solver(self.solver, self.steps, self.shift))

    @property
    def skips(self) -> Skipping:
        """The rule by which steps reuse a prediction."""
        return make_skipping(self.skipping, self.steps, self.skip_thresholds)

    def schedules(self) -> dict[str, Schedule]:
        """How video and actions are denoised."""
        runs = self.skips.planned(self.steps)
        return {part: Schedule(solver.sigmas, runs) for part, solver in self.solvers._asdict().items()}

    def __call__(self, params: dict, conditions: Conditions, keys, history=None,
                 inpainting: Inpainting | None = None) -> Prediction:
        """Predicts a window. keys: one per sample [B]. history: real latents [B, F, h, w, C] or None. inpainting: for
        the whole window.

        Without conditions.state no action is predicted, but the video alone, as for a clip without actions.
        """
        spec = self.model.spec
        if self.guided and conditions.unconditional_text is None:
            raise ValueError("guidance other than 1 needs conditions.unconditional_text")
        text = self.branches(conditions.text, conditions.unconditional_text)
        context = self.context(params, text, self.both(conditions.image))
        cache = cached.empty_cache(spec, text.shape[0], params["patch_embedding.kernel"].dtype)
        latents, actions, calls = [conditions.first_latents], [], []
        for block in range(spec.layout.num_blocks + 1):
            if block:
                noise, action_noise = self.noise(keys, block)
                if conditions.state is None:
                    action_noise = None
                block_latents, block_actions, block_calls = self.denoise(
                    params, cache, context, noise, action_noise, self.block_states(conditions.state, block),
                    self.block_frames(conditions.condition, block), block, self.block_inpainting(inpainting, block))
                latents.append(block_latents)
                actions.append(block_actions)
                calls.append(block_calls)
            if block < spec.layout.num_blocks:  # the last block's video is never looked at
                clean = latents[-1] if history is None else self.block_frames(history, block)
                cache = self.prefill(params, cache, context, self.both(clean),
                                      self.both(self.block_frames(conditions.condition, block)), block)
        actions = None if conditions.state is None else jnp.concatenate(actions, axis=1)
        return Prediction(actions, jnp.concatenate(latents, axis=1), jnp.stack(calls))

    def block_frames(self, x, block: int):
        """The frames of a block, from [B, F, ...]; None stays None."""
        n = self.model.spec.layout.frames_per_block
        first = 1 + (block - 1) * n
        return None if x is None else x[:, :1] if block == 0 else x[:, first:first + n]

    def block_states(self, state, block: int):
        """The state tokens of a block, from [B, S, ...]; None stays None."""
        n = self.model.spec.layout.states_per_block
        return None if state is None else state[:, (block - 1) * n:block * n]

    def block_inpainting(self, whole: Inpainting | None, block: int) -> Inpainting | None:
        """A block's part of what is given for a window."""
        if whole is None:
            return None
        n = self.model.spec.layout.actions_per_block
        own = slice((block - 1) * n, block * n)
        return Inpainting(whole.actions[:, own], whole.action_mask[:, own], self.block_frames(whole.latents, block),
                          self.block_frames(whole.latent_mask, block))

    def noise(self, keys, block: int):
        """Initial video and action noise of a block, a function of each sample's key."""
        spec = self.model.spec
        return sample_noise(keys, block, ((spec.layout.frames_per_block, *spec.latent_shape),
                                          (spec.layout.actions_per_block, spec.action_dim)))

    @functools.partial(jax.jit, static_argnums=0)
    def context(self, params, text, image):
        """Keys and values of text and image, for all branches."""
        return cached.encode_context(bind(self.model, params), text, image)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def prefill(self, params, cache, context, latents, condition, block):
        """The cache, whose memory is used again, with a block's clean latents in it; everything for all branches."""
        return cached.prefill(bind(self.model, params), cache, context, latents, condition, block)

    @functools.partial(jax.jit, static_argnums=(0, 10))
    def denoise(self, params, cache, context, latents, actions, state, condition, block,
                inpainting: Inpainting | None = None, clean_actions: bool = False):
        """All solver steps of one block: (clean latents, clean actions, int32 model calls) from noise.

        Without actions and state (None) the video alone is denoised. clean_actions: `actions` are no noise but what
        they are, at noise level 0 from the first step on.
        """
        solvers = self.solvers if actions is not None else self.solvers._replace(action=None)
        noise, skipping = Velocity(latents, actions), self.skips
        constant = _inpainting_velocities(solvers, noise, inpainting)
        predict = functools.partial(self._predict, bind(self.model, params), cache, context, state, condition, block,
                                    clean_actions)

        def step(carry, i):
            sample, past, last, memory = carry
            run, memory = skipping.decide(i, memory)
            velocity = predict(solvers, sample, i) if run is True else jax.lax.cond(
                run, lambda: predict(solvers, sample, i), lambda: last)
            noted = skipping.note(memory, velocity.video)
            if inpainting is not None:
                mask = Velocity(inpainting.latent_mask, inpainting.action_mask)
                velocity = jax.tree.map(jnp.where, mask, constant, velocity)
            memory = noted if run is True else jax.tree.map(lambda new, old: jnp.where(run, new, old), noted, memory)
            stepped = jax.tree.map(lambda solver, *at: solver.step(i, *at), solvers, velocity, sample, past)
            sample, past = (Velocity(*(pair and pair[j] for pair in stepped)) for j in (0, 1))
            return (sample, past, velocity, memory), jnp.int32(run)

        start = (noise, jax.tree.map(lambda solver, x: solver.init(x), solvers, noise),
                 jax.tree.map(jnp.zeros_like, noise), skipping.init(latents))
        (sample, *_), calls = jax.lax.scan(step, start, jnp.arange(self.steps))
        return *sample, calls.sum()

    def _predict(self, model, cache, context, state, condition, block, clean_actions: bool, solvers: Velocity,
                 sample: Velocity, i) -> Velocity:
        """Guided velocities of video and, where they are, actions at solver step i."""
        times = jax.tree.map(lambda solver: jnp.asarray(solver.timesteps, jnp.float32)[i], solvers)
        levels = jax.tree.map(lambda x, time: jnp.full(x.shape[:2], time), sample, times)
        if clean_actions:
            levels = levels._replace(action=jnp.zeros_like(levels.action))
        noisy = jax.tree.map(self.both, cached.Noisy(sample.video, levels.video, sample.action, levels.action, state))
        out = cached.denoise(model, cache, context, noisy, self.both(condition), block)
        scales = Velocity(self.guidance, None if sample.action is None else self.action_guidance)
        return jax.tree.map(lambda x, scale: self.guide(x.astype(jnp.float32), scale), out, scales)


def _inpainting_velocities(solvers: Velocity, noise: Velocity, inpainting: Inpainting | None) -> Velocity | None:
    """Velocities that lead from noise to the given values."""
    if inpainting is None:
        return None
    values = Velocity(inpainting.latents, inpainting.actions)
    return jax.tree.map(lambda solver, x, value: inpainting_velocity(x, value, -solver.sigmas[0]), solvers, noise,
                        values)
