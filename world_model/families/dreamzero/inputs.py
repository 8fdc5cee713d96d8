"""DreamZero's inputs: beside latents and text, the first frame joined on channels and its image features."""

import dataclasses

import jax
import jax.numpy as jnp

from world_model.batch import encoded_batch_spec
from world_model.families.base.inputs import Fields
from world_model.families.dreamzero.layout import MASK_CHANNELS, DreamZeroSpec
from world_model.families.wan.inputs import Conditions, VideoInputs, to_pixels

# The text, word for word, that the released weights are guided away from (dreamzero0/dreamzero at ab790c1,
# groot/vla/model/dreamzero/transform/dreamzero_cotrain.py).
RELEASED_UNCONDITIONAL = (
    "Vibrant colors, overexposed, static, blurry details, text, subtitles, style, artwork, painting, image, still, "
    "grayscale, dull, worst quality, low quality, JPEG artifacts, ugly, mutilated, extra fingers, bad hands, bad face, "
    "deformed, disfigured, mutated limbs, fused fingers, stagnant image, cluttered background, three legs, many people "
    "in the background, walking backwards.")


@dataclasses.dataclass(frozen=True)
class DreamZeroInputs(VideoInputs):
    """`condition` and `image` exist where the model takes them."""

    spec: DreamZeroSpec

    def stored_fields(self) -> Fields:
        spec = self.spec
        return encoded_batch_spec(
            spec.layout, action_dim=spec.action_dim, state_dim=spec.state_dim, text=(spec.text_length, spec.text_dim),
            latent=spec.latent_shape, image=(spec.image_tokens, spec.image_dim) if spec.image_dim else None,
            concat_first_frame=spec.concat_first_frame)

    def features(self, frozen: dict, batch: dict):
        latents, _, text, _ = super().features(frozen, batch)
        if "latents" not in batch:
            condition, image = self._first_frame(frozen, batch["video"][:, :1], batch["video"].shape[1])
            return latents, condition, text, image
        condition = self.condition(batch["first_latents"].astype(jnp.float32)) if self.spec.concat_first_frame else None
        return latents, condition, text, batch["image_features"].astype(jnp.float32) if self.spec.image_dim else None

    def start(self, frozen: dict, frames, text_ids, text_length) -> Conditions:
        condition, image = self._first_frame(frozen, frames, self.spec.layout.frames)
        return super().start(frozen, frames, text_ids, text_length)._replace(condition=condition, image=image)

    def store(self, frozen: dict, batch: dict) -> dict[str, jax.Array]:
        """See `Inputs`. Raises ValueError where no encoder gives the image features that the model takes."""
        made, pixels = super().store(frozen, batch), to_pixels(batch["video"])
        if self.spec.concat_first_frame:
            first = self.video.encode_first(frozen["video"], pixels[:, :1], pixels.shape[1])
            made["first_latents"] = first.astype(jnp.bfloat16)
        if self.spec.image_dim:
            made["image_features"] = self._image(frozen, pixels[:, 0]).astype(jnp.bfloat16)
        return made

    def unconditional_text(self, frozen: dict, batch_size: int):
        """See `VideoInputs`; "released" stands for the published negative prompt."""
        prompt = RELEASED_UNCONDITIONAL if self.unconditional == "released" else self.unconditional
        return self.fixed_text(frozen, prompt, batch_size)

    def condition(self, latents):
        """[B, F, h, w, 4 + C]: 1 in the mask of frame 0, then latents of the first frame followed by mid-grey."""
        mask = jnp.zeros((*latents.shape[:-1], MASK_CHANNELS)).at[:, 0].set(1)
        return jnp.concatenate([mask, latents], axis=-1)

    def _first_frame(self, frozen: dict, frame, count: int):
        """(condition of `count` frames, image features), None where the model has none, from uint8 [B, 1, H, W, 3]."""
        first, condition, image = to_pixels(frame), None, None
        if self.spec.image_dim:
            image = self._image(frozen, first[:, 0])
        if self.spec.concat_first_frame:
            condition = self.condition(self.video.encode_first(frozen["video"], first, count))
        return condition, image

    def _image(self, frozen: dict, pictures):
        if not self.image:
            raise ValueError(f"model.image_dim = {self.spec.image_dim}, but no encoder gives image features; set "
                             "model.image_dim = 0, or encoders.image")
        return self.image.encode(frozen["image"], pictures)
