"""DreamZero's rollout: denoise block after block against a cache of clean video."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from world_model.families import dreamzero_cached as cached
from world_model.families.dreamzero import DreamZero
from world_model.functional import bind
from world_model.rollout import Conditions, Prediction
from world_model.solvers import make_solver


@dataclasses.dataclass(frozen=True)
class DreamZeroRollout:
    """A compiled rollout: call it with parameters, conditions and one key per sample."""

    model: DreamZero  # abstract: structure without arrays
    solver: str = "unipc"
    steps: int = 16
    shift: float = 5.0
    video_final_sigma: float = 0.0  # DreamZero-Flash leaves the video noisy (0.8)
    guidance: float = 1.0  # v = u + guidance (c - u), on the video alone; 1 needs no unconditional pass

    def __call__(self, params: dict, conditions: Conditions, keys, history=None) -> Prediction:
        """keys: one per sample [B]. history: real latents [B, F, h, w, C] or None."""
        spec = self.model.spec
        text = conditions.text
        if self.guided and conditions.unconditional_text is None:
            raise ValueError(f"guidance = {self.guidance} needs conditions.unconditional_text")
        if self.guided:  # both branches in one batch: conditional first
            text = jnp.concatenate([text, conditions.unconditional_text])
        context = self._context(params, text, self._both(conditions.image))
        cache = cached.empty_cache(spec, text.shape[0], params["patch_embedding.kernel"].dtype)
        latents, actions = [conditions.first_latents], []
        for block in range(spec.layout.num_blocks + 1):
            if block:
                noise = self.noise(keys, block)
                block_latents, block_actions = self._denoise(
                    params, cache, context, *noise, self.block_states(conditions.state, block),
                    self.block_frames(conditions.condition, block), block)
                latents.append(block_latents)
                actions.append(block_actions)
            if block < spec.layout.num_blocks:  # the last block's video is never looked at
                clean = latents[-1] if history is None else self.block_frames(history, block)
                cache = self._prefill(params, cache, context, self._both(clean),
                                      self._both(self.block_frames(conditions.condition, block)), block)
        return Prediction(jnp.concatenate(latents, axis=1), jnp.concatenate(actions, axis=1))

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

    def noise(self, keys, block: int):
        """Initial video and action noise of a block, a function of each sample's key."""
        spec = self.model.spec
        shapes = ((spec.layout.frames_per_block, spec.latent_height, spec.latent_width, spec.latent_channels),
                  (spec.layout.actions_per_block, spec.action_dim))
        draw = lambda key: tuple(jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, block), i), shape)
                                 for i, shape in enumerate(shapes))
        return jax.vmap(draw)(keys)

    def _both(self, x):
        return jnp.concatenate([x, x]) if self.guided and x is not None else x

    @functools.partial(jax.jit, static_argnums=0)
    def _context(self, params, text, image):
        return cached.encode_context(bind(self.model, params), text, image)

    @functools.partial(jax.jit, static_argnums=0)
    def _prefill(self, params, cache, context, latents, condition, block):
        return cached.prefill(bind(self.model, params), cache, context, latents, condition, block)

    @functools.partial(jax.jit, static_argnums=0)
    def _denoise(self, params, cache, context, latents, actions, state, condition, block):
        """All solver steps of one block: clean latents and actions from noise."""
        model = bind(self.model, params)
        video_solver = make_solver(self.solver, self.steps, self.shift, self.video_final_sigma)
        action_solver = make_solver(self.solver, self.steps, self.shift)
        video_times, action_times = (jnp.asarray(s.timesteps, jnp.float32) for s in (video_solver, action_solver))

        def step(carry, i):
            latents, actions, video_carry, action_carry = carry
            velocity = self._velocity(model, cache, context, latents, actions, state, condition, block,
                                      video_times[i], action_times[i])
            latents, video_carry = video_solver.step(i, velocity.video, latents, video_carry)
            actions, action_carry = action_solver.step(i, velocity.action, actions, action_carry)
            return (latents, actions, video_carry, action_carry), None

        start = (latents, actions, video_solver.init(latents), action_solver.init(actions))
        (latents, actions, *_), _ = jax.lax.scan(step, start, jnp.arange(self.steps))
        return latents, actions

    def _velocity(self, model, cache, context, latents, actions, state, condition, block, video_time, action_time):
        count = latents.shape[0]
        full = lambda x, time: jnp.full(x.shape[:2], time)
        noisy = cached.Noisy(latents, full(latents, video_time), actions, full(actions, action_time), state)
        noisy = jax.tree.map(self._both, noisy)
        out = cached.denoise(model, cache, context, noisy, self._both(condition), block)
        out = jax.tree.map(lambda x: x.astype(jnp.float32), out)
        if not self.guided:
            return out
        conditional, unconditional = out.video[:count], out.video[count:]
        video = unconditional + self.guidance * (conditional - unconditional)
        return out._replace(video=video, action=out.action[:count])
