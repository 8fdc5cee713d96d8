"""DreamZero's rollout: denoise block after block against a cache of clean video."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from world_model.families import dreamzero_cached as cached
from world_model.families.dreamzero import DreamZero
from world_model.families.stack import Velocity
from world_model.functional import bind
from world_model.rollout import Conditions, Known, Prediction
from world_model.solvers import make_solver
from world_model.step_skipping import THRESHOLDS, make_skipping


@dataclasses.dataclass(frozen=True)
class DreamZeroRollout:
    """A compiled rollout: call it with parameters, conditions and one key per sample."""

    model: DreamZero  # abstract: structure without arrays
    solver: str = "unipc"
    steps: int = 16
    shift: float = 5.0
    video_final_sigma: float = 0.0  # DreamZero-Flash leaves the video noisy (0.8)
    guidance: float = 1.0  # v = u + guidance (c - u), on the video alone; 1 needs no unconditional pass
    skipping: str = "none"  # steps that reuse the last prediction: world_model/step_skipping.py
    skip_thresholds: tuple = THRESHOLDS  # of skipping = "adaptive"

    def __call__(self, params: dict, conditions: Conditions, keys, history=None,
                 known: Known | None = None) -> Prediction:
        """keys: one per sample [B]. history: real latents [B, F, h, w, C] or None. known: with all B, N and F."""
        spec = self.model.spec
        text = conditions.text
        if self.guided and conditions.unconditional_text is None:
            raise ValueError(f"guidance = {self.guidance} needs conditions.unconditional_text")
        if self.guided:  # both branches in one batch: conditional first
            text = jnp.concatenate([text, conditions.unconditional_text])
        context = self.context(params, text, self.both(conditions.image))
        cache = cached.empty_cache(spec, text.shape[0], params["patch_embedding.kernel"].dtype)
        latents, actions, calls = [conditions.first_latents], [], []
        for block in range(spec.layout.num_blocks + 1):
            if block:
                noise = self.noise(keys, block)
                block_latents, block_actions, block_calls = self.denoise(
                    params, cache, context, *noise, self.block_states(conditions.state, block),
                    self.block_frames(conditions.condition, block), block, self.block_known(known, block))
                latents.append(block_latents)
                actions.append(block_actions)
                calls.append(block_calls)
            if block < spec.layout.num_blocks:  # the last block's video is never looked at
                clean = latents[-1] if history is None else self.block_frames(history, block)
                cache = self.prefill(params, cache, context, self.both(clean),
                                      self.both(self.block_frames(conditions.condition, block)), block)
        return Prediction(jnp.concatenate(latents, axis=1), jnp.concatenate(actions, axis=1), jnp.stack(calls))

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch runs."""
        return self.guidance != 1.0

    def block_frames(self, x, block: int):
        """The frames of a block, of [B, F, ...] or None."""
        n = self.model.spec.layout.frames_per_block
        first = 1 + (block - 1) * n
        return None if x is None else x[:, :1] if block == 0 else x[:, first:first + n]

    def block_states(self, state, block: int):
        """The state tokens of a block."""
        n = self.model.spec.layout.states_per_block
        return state[:, (block - 1) * n:block * n]

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

    def both(self, x):
        """x once per branch: conditional first, then unconditional."""
        return jnp.concatenate([x, x]) if self.guided and x is not None else x

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
        predicted, as in training, and any solver is exact on it.
        """
        model = bind(self.model, params)
        video_solver = make_solver(self.solver, self.steps, self.shift, self.video_final_sigma)
        action_solver = make_solver(self.solver, self.steps, self.shift)
        video_times, action_times = (jnp.asarray(s.timesteps, jnp.float32) for s in (video_solver, action_solver))

        given = None if known is None else Velocity((latents - known.latents) / video_solver.sigmas[0],
                                                    (actions - known.actions) / action_solver.sigmas[0])
        skipping = make_skipping(self.skipping, self.steps, self.skip_thresholds)

        def step(carry, i):
            latents, actions, video_carry, action_carry, last, memory = carry
            run, memory = skipping.decide(i, memory)
            predict = lambda: self._velocity(model, cache, context, latents, actions, state, condition, block,
                                             video_times[i], action_times[i])
            velocity = predict() if run is True else jax.lax.cond(run, predict, lambda: last)
            noted = skipping.note(memory, velocity.video)
            if known is not None:
                velocity = Velocity(jnp.where(known.latent_mask, given.video, velocity.video),
                                    jnp.where(known.action_mask, given.action, velocity.action))
            memory = noted if run is True else jax.tree.map(lambda new, old: jnp.where(run, new, old), noted, memory)
            latents, video_carry = video_solver.step(i, velocity.video, latents, video_carry)
            actions, action_carry = action_solver.step(i, velocity.action, actions, action_carry)
            return (latents, actions, video_carry, action_carry, velocity, memory), jnp.int32(run)

        nothing = Velocity(jnp.zeros_like(latents), jnp.zeros_like(actions))
        start = (latents, actions, video_solver.init(latents), action_solver.init(actions), nothing,
                 skipping.init(latents))
        (latents, actions, *_), calls = jax.lax.scan(step, start, jnp.arange(self.steps))
        return latents, actions, calls.sum()

    def _velocity(self, model, cache, context, latents, actions, state, condition, block, video_time, action_time):
        count = latents.shape[0]
        full = lambda x, time: jnp.full(x.shape[:2], time)
        noisy = cached.Noisy(latents, full(latents, video_time), actions, full(actions, action_time), state)
        noisy = jax.tree.map(self.both, noisy)
        out = cached.denoise(model, cache, context, noisy, self.both(condition), block)
        out = jax.tree.map(lambda x: x.astype(jnp.float32), out)
        if not self.guided:
            return out
        conditional, unconditional = out.video[:count], out.video[count:]
        video = unconditional + self.guidance * (conditional - unconditional)
        return out._replace(video=video, action=out.action[:count])
