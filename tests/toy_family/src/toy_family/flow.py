"""Flow matching of a chunk of actions: the loss, one noise level per sample; the sampler, Euler steps; the policy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from toy_family.inputs import Example
from toy_family.network import Toy
from world_model.diffusion import flow_matching
from world_model.diffusion.inpainting import Inpainting, inpainting_velocity
from world_model.diffusion.solvers import make_solver
from world_model.families.base.batched_policy import Asked, BatchedPolicy, Window
from world_model.families.base.loss import ActionLoss, by_level, normal
from world_model.families.base.policy import Chunk
from world_model.families.base.sampler import Prediction, Schedule, sample_noise
from world_model.functional import bind


@dataclasses.dataclass(frozen=True)
class ToyLoss(ActionLoss):
    """Mean square of the velocity over valid actions."""

    shift: float = 1.0

    def sample(self, keys, example: Example, key: jax.Array):
        sigma = flow_matching.shift_sigma(jax.vmap(jax.random.uniform)(keys(0)), self.shift)
        return sigma, normal(keys(1), example.actions.shape[1:])

    def predict(self, params, example: Example, sampled):
        (sigma, noise), model = sampled, bind(self.model, params)
        noisy = flow_matching.add_noise(example.actions, noise, sigma)
        return {"action": model.velocity(*model.look(example), noisy, 1000 * sigma)}, None

    def loss_of(self, predicted, targets, example: Example, sampled, counts):
        error, sigma = predicted[0]["action"] - targets["action"], sampled[0]
        loss = jnp.where(example.action_mask, error**2, 0).sum() / counts["actions"]
        return loss, {"action_loss": loss} | by_level("action", error**2, example.action_mask, sigma[:, None, None])


@dataclasses.dataclass(frozen=True)
class ToySampler:
    """Called with parameters, conditions and one key per sample; the pictures are all the history there is."""

    model: Toy  # abstract: structure without arrays
    steps: int = 10
    shift: float = 1.0

    def schedules(self) -> dict[str, Schedule]:
        return {"action": Schedule(make_solver("euler", self.steps, self.shift).sigmas, (True,) * self.steps)}

    def __call__(self, params: dict, conditions: Example, keys, history=None, inpainting: Inpainting | None = None):
        return Prediction(self.denoise(params, conditions, keys, 1, inpainting))

    @functools.partial(jax.jit, static_argnums=0)
    def denoise(self, params: dict, seen: Example, keys, block, known: Inpainting | None = None):
        """Actions [B, N, action_dim] of a block; those that are given go straight from noise to their value."""
        model, spec, solver = bind(self.model, params), self.model.spec, make_solver("euler", self.steps, self.shift)
        noise, = sample_noise(keys, block, ((spec.layout.actions_per_block, spec.action_dim),))
        features = model.look(seen)

        def step(x, i):
            velocity = model.velocity(*features, x, jnp.full(len(x), jnp.asarray(solver.timesteps, jnp.float32)[i]))
            if known is not None:
                velocity = jnp.where(known.action_mask, inpainting_velocity(noise, known.actions, -solver.sigmas[0]), velocity)
            return solver.step(i, velocity, x, ())[0], None

        return jax.lax.scan(step, noise, jnp.arange(self.steps))[0]


class ToyPolicy(BatchedPolicy):
    """A session remembers its prompt and the newest pictures, and slides on for ever."""

    def begin_episode(self, params, frozen, pictures, text_ids, text_length):
        return pictures, (text_ids, text_length)

    def observe_block(self, params, window: Window, seen, actions, block, data):
        return seen

    def predict_block(self, params, window: Window, asked: Asked) -> Chunk:
        seen = Example(*window.cache, *window.episode, asked.state[None, None])
        known = Inpainting(asked.actions[None], asked.given[None])
        return Chunk(self.sampler.denoise(params, seen, asked.key[None], asked.block, known))
