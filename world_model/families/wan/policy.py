"""What policies of video families share: blocks become latents, and what was imagined is compared with what is seen."""

import jax
import jax.numpy as jnp

from world_model.families.base.batched_policy import BatchedPolicy


class VideoPolicy(BatchedPolicy):
    """`sampler` is Guided, `inputs` are VideoInputs."""

    def place(self, params: dict) -> dict:
        return self.sampler.placed(params)

    def blank_block(self) -> jax.Array:
        spec = self.sampler.model.spec
        return jnp.zeros((spec.layout.frames_per_block, *spec.latent_shape))

    def gap(self, seen, imagined) -> jax.Array:
        return jnp.sqrt(jnp.square(seen[0] - imagined).mean())
