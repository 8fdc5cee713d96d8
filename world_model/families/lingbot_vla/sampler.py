"""Sampling a chunk of actions: the prefix once, then Euler steps of the action expert over its keys and values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from world_model.diffusion.inpainting import Inpainting, inpainting_velocity
from world_model.families.base.batched_policy import Asked, BatchedPolicy, Window
from world_model.families.base.policy import Chunk
from world_model.families.base.sampler import Prediction, Schedule, sample_noise
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.model import LingBotVLA
from world_model.families.lingbot_vla.vision import make_patches
from world_model.functional import bind


@dataclasses.dataclass(frozen=True)
class LingBotVLASampler:
    """Called with parameters, conditions and one key per sample; the current observation is all the history."""

    model: LingBotVLA  # abstract: structure without arrays
    steps: int = 10

    def schedules(self) -> dict[str, Schedule]:
        """Noise levels, by part."""
        return {"action": Schedule(times(self.steps), (True,) * self.steps)}

    def __call__(self, params: dict, conditions: Example, keys, history=None, inpainting: Inpainting | None = None):
        noise = self.noise(keys, 1)
        return Prediction(self.denoise(params, conditions, noise, inpainting))

    def noise(self, keys, block):
        """float32 [B, N, action_dim]."""
        spec = self.model.spec
        return sample_noise(keys, block, ((spec.layout.actions_per_block, spec.action_dim),))[0]

    @functools.partial(jax.jit, static_argnums=0)
    def denoise(self, params: dict, example: Example, noise, inpainting: Inpainting | None = None):
        """float32 [B, N, action_dim]; given actions move from noise to their value at a constant velocity."""
        model = bind(self.model, params)
        prefix = model.encode_prefix(example.patches, example.view_mask, example.text_ids, example.text_length)

        def step(x, time):
            velocity = model.velocity(prefix, example.state, x, jnp.full(len(x), time))[0].astype(jnp.float32)
            if inpainting is not None:
                straight = inpainting_velocity(noise, inpainting.actions, -1.0)
                velocity = jnp.where(inpainting.action_mask, straight, velocity)
            return x - velocity / self.steps, None

        return jax.lax.scan(step, noise, jnp.asarray(times(self.steps)[:-1]))[0]


def times(steps: int) -> np.ndarray:
    """float32 [steps + 1]: from 1, noise, to 0 in even steps, added up in float32 as released: to a sinusoid this fast
    the last digit counts. Raises ValueError without any step."""
    if steps < 1:
        raise ValueError(f"evaluate.solver_steps = {steps}: at least 1 is needed")
    return np.append(np.add.accumulate(np.float32([1, *[-1 / steps] * (steps - 1)])), np.float32(0))


class LingBotVLAPolicy(BatchedPolicy):
    """A session remembers its prompt and the newest pictures, and slides on for ever."""

    def begin_episode(self, params, frozen, pictures, text_ids, text_length):
        return pictures, (text_ids, text_length)

    def observe_block(self, params, window: Window, seen, actions, block, data):
        return seen

    def predict_rows(self, params, windows: Window, asked: Asked) -> Chunk:
        """See `BatchedPolicy`: one batch. The experts' grouped product has no rule for vmap."""
        (views, view_mask), (text_ids, text_length) = jax.tree.map(lambda x: x[:, 0], (windows.cache, windows.episode))
        example = Example(make_patches(self.sampler.model.spec, views), view_mask, text_ids, text_length, asked.state)
        noise = jax.vmap(lambda key, block: self.sampler.noise(key[None], block)[0])(asked.key, asked.block)
        return Chunk(self.sampler.denoise(params, example, noise, Inpainting(asked.actions, asked.given)))
