"""What policies of video families share: blocks become latents, and what was imagined is compared with what is seen."""

import jax
import jax.numpy as jnp

from world_model.diffusion.inpainting import Inpainting
from world_model.families.base.batched_policy import Asked, BatchedPolicy, Window


class VideoPolicy(BatchedPolicy):
    """`sampler` is Guided, `inputs` are VideoInputs."""

    def place(self, params: dict) -> dict:
        return self.sampler.placed(params)

    def blank_block(self) -> jax.Array:
        spec = self.sampler.model.spec
        return jnp.zeros((spec.layout.frames_per_block, *spec.latent_shape))

    def inpainting(self, window: Window, asked: Asked, video_given: bool) -> Inpainting:
        """The known values of the next block; video_given: its video is what was imagined last."""
        video = window.imagined[None]
        return Inpainting(asked.actions[None], asked.given[None], video, jnp.full((1,) * video.ndim, video_given))

    def gap(self, seen, imagined) -> jax.Array:
        return jnp.sqrt(jnp.square(seen[0] - imagined).mean())
