"""DreamZero's rollout: denoise block after block against a cache of clean video."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from world_model.diffusion.solvers import make_solver
from world_model.diffusion.step_skipping import THRESHOLDS, Skipping, make_skipping
from world_model.families.base.sampler import Conditions, Guided, Known, Prediction, Schedule
from world_model.families.dreamzero import cached
from world_model.families.dreamzero.model import DreamZero
from world_model.functional import bind
from world_model.layers.stack import Velocity


@dataclasses.dataclass(frozen=True)
class DreamZeroRollout(Guided):
    """A compiled rollout: call it with parameters, conditions and one key per sample."""

    model: DreamZero  # abstract: structure without arrays
    solver: str = "unipc"
    steps: int = 16
    shift: float = 5.0
    video_final_sigma: float = 0.0  # DreamZero-Flash leaves the video noisy (0.8)
    skipping: str = "none"  # steps that reuse the last prediction: world_model/diffusion/step_skipping.py
    skip_thresholds: tuple = THRESHOLDS  # of skipping = "adaptive"

    @property
    def solvers(self) -> Velocity:
        """Of video and actions."""
        return Velocity(make_solver(self.solver, self.steps, self.shift, self.video_final_sigma),
                        make_solver(self.solver, self.steps, self.shift))

    @property
    def skips(self) -> Skipping:
        """Which of their steps reuse a prediction."""
        return make_skipping(self.skipping, self.steps, self.skip_thresholds)

    def schedules(self) -> dict[str, Schedule]:
        """Of video and actions, as denoised."""
        runs = self.skips.planned(self.steps)
        return {part: Schedule(solver.sigmas, runs) for part, solver in self.solvers._asdict().items()}

    def __call__(self, params: dict, conditions: Conditions, keys, history=None,
                 known: Known | None = None) -> Prediction:
        """keys: one per sample [B]. history: real latents [B, F, h, w, C] or None. known: with all B, N and F.

        Without conditions.state no action is predicted: the video alone, as of a clip without actions.
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
                    self.block_frames(conditions.condition, block), block, self.block_known(known, block))
                latents.append(block_latents)
                actions.append(block_actions)
                calls.append(block_calls)
            if block < spec.layout.num_blocks:  # the last block's video is never looked at
                clean = latents[-1] if history is None else self.block_frames(history, block)
                cache = self.prefill(params, cache, context, self.both(clean),
                                      self.both(self.block_frames(conditions.condition, block)), block)
        actions = None if conditions.state is None else jnp.concatenate(actions, axis=1)
        return Prediction(jnp.concatenate(latents, axis=1), actions, jnp.stack(calls))

    def block_frames(self, x, block: int):
        """The frames of a block, of [B, F, ...] or None."""
        n = self.model.spec.layout.frames_per_block
        first = 1 + (block - 1) * n
        return None if x is None else x[:, :1] if block == 0 else x[:, first:first + n]

    def block_states(self, state, block: int):
        """The state tokens of a block, of [B, S, ...] or None."""
        n = self.model.spec.layout.states_per_block
        return None if state is None else state[:, (block - 1) * n:block * n]

    def block_known(self, known: Known | None, block: int) -> Known | None:
        """That of a block."""
        if known is None:
            return None
        n = self.model.spec.layout.actions_per_block
        own = slice((block - 1) * n, block * n)
        return Known(known.actions[:, own], known.action_mask[:, own], self.block_frames(known.latents, block),
                     self.block_frames(known.latent_mask, block))

    def noise(self, keys, block: int):
        """Initial video and action noise of a block, a function of each sample's key."""
        spec = self.model.spec
        shapes = ((spec.layout.frames_per_block, spec.latent_height, spec.latent_width, spec.latent_channels),
                  (spec.layout.actions_per_block, spec.action_dim))
        draw = lambda key: tuple(jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, block), i), shape)
                                 for i, shape in enumerate(shapes))
        return jax.vmap(draw)(keys)

    @functools.partial(jax.jit, static_argnums=0)
    def context(self, params, text, image):
        """Keys and values of text and image, for all branches."""
        return cached.encode_context(bind(self.model, params), text, image)

    @functools.partial(jax.jit, static_argnums=0)
    def prefill(self, params, cache, context, latents, condition, block):
        """The cache with a block's clean latents in it; everything for all branches."""
        return cached.prefill(bind(self.model, params), cache, context, latents, condition, block)

    @functools.partial(jax.jit, static_argnums=0)
    def denoise(self, params, cache, context, latents, actions, state, condition, block, known: Known | None = None):
        """All solver steps of one block: (clean latents, clean actions, int32 model calls) from noise.

        What is known goes straight from its noise to its value: it has at every step the noise level of what is
        predicted, as in training, and any solver is exact on it. Without actions and state (None), the video alone.
        """
        model = bind(self.model, params)
        solvers = self.solvers if actions is not None else self.solvers._replace(action=None)
        each = lambda function, *of: jax.tree.map(function, solvers, *of)  # video and, where they are, actions
        noise, times = Velocity(latents, actions), each(lambda solver: jnp.asarray(solver.timesteps, jnp.float32))
        if known is not None:
            mask = Velocity(known.latent_mask, known.action_mask)
            straight = each(lambda solver, x, value: (x - value) / solver.sigmas[0], noise,
                            Velocity(known.latents, known.actions))
        skipping = self.skips

        def step(carry, i):
            sample, past, last, memory = carry
            run, memory = skipping.decide(i, memory)
            predict = lambda: self._velocity(model, cache, context, sample, state, condition, block,
                                             each(lambda _, time: time[i], times))
            velocity = predict() if run is True else jax.lax.cond(run, predict, lambda: last)
            noted = skipping.note(memory, velocity.video)
            if known is not None:
                velocity = jax.tree.map(jnp.where, mask, straight, velocity)
            memory = noted if run is True else jax.tree.map(lambda new, old: jnp.where(run, new, old), noted, memory)
            stepped = each(lambda solver, *at: solver.step(i, *at), velocity, sample, past)
            sample, past = (Velocity(*(pair and pair[j] for pair in stepped)) for j in (0, 1))
            return (sample, past, velocity, memory), jnp.int32(run)

        start = (noise, each(lambda solver, x: solver.init(x), noise), jax.tree.map(jnp.zeros_like, noise),
                 skipping.init(latents))
        (sample, *_), calls = jax.lax.scan(step, start, jnp.arange(self.steps))
        return *sample, calls.sum()

    def _velocity(self, model, cache, context, sample: Velocity, state, condition, block, times: Velocity) -> Velocity:
        levels = jax.tree.map(lambda x, time: jnp.full(x.shape[:2], time), sample, times)
        noisy = jax.tree.map(self.both, cached.Noisy(sample.video, levels.video, sample.action, levels.action, state))
        out = cached.denoise(model, cache, context, noisy, self.both(condition), block)
        scales = Velocity(self.guidance, None if sample.action is None else self.action_guidance)
        return jax.tree.map(lambda x, scale: self.guide(x.astype(jnp.float32), scale), out, scales)
