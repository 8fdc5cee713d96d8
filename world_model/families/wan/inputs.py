"""Inputs of families that imagine video: latents by a frozen codec, text features, masks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.batch import batch_spec, encoded_batch_spec
from world_model.encoders import ImageEncoder, TextEncoder, VideoCodec
from world_model.families.base.inputs import Fields, Inputs
from world_model.families.wan.spec import VideoSpec


class Example(NamedTuple):
    """A batch after the frozen encoders; float32. Families fill `condition`, `image` and `empty_text` where they have
    them."""

    latents: jax.Array  # [B, F, h, w, C]
    condition: jax.Array | None  # [B, F, h, w, 4 + C]
    text: jax.Array  # [B, Lt, text_dim]
    image: jax.Array | None  # [B, Li, image_dim], features of the first frame
    frame_valid: jax.Array  # bool [B, F]
    actions: jax.Array  # [B, N, action_dim]; zeros where masked
    action_mask: jax.Array  # bool [B, N, action_dim]
    action_valid: jax.Array  # bool [B, N]
    state: jax.Array  # [B, S, state_dim]; zeros on a video-only clip
    sample_index: jax.Array | None = None  # uint32 [B], what every random draw is a function of
    empty_text: jax.Array | None = None  # [B, Lt, text_dim], features of the empty prompt


class Conditions(NamedTuple):
    """What a sampler starts from; shapes as in `Example`."""

    first_latents: jax.Array  # [B, 1, h, w, C]
    text: jax.Array
    state: jax.Array | None  # [B, S, state_dim], one block's states at a time are looked at
    condition: jax.Array | None = None
    image: jax.Array | None = None
    unconditional_text: jax.Array | None = None  # [B, Lt, text_dim], for guidance other than 1
    actions: jax.Array | None = None  # as executed, for families whose history holds them
    action_mask: jax.Array | None = None  # bool, True on real values of `actions`


def to_pixels(frames):
    """uint8 -> float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def to_bytes(pixels):
    """The inverse of `to_pixels`."""
    return jnp.round((pixels + 1) * 127.5).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class VideoInputs(Inputs):
    """Tiled canvases go through the video codec, prompts through the text encoder."""

    spec: VideoSpec
    video: VideoCodec
    text: TextEncoder
    image: ImageEncoder | None = None
    unconditional: str = ""  # what the unconditional branch of guidance reads

    stored_from = ("video",)

    @property
    def encoders(self) -> dict:
        return {"video": self.video, "text": self.text} | ({"image": self.image} if self.image else {})

    def batch_fields(self) -> Fields:
        spec = self.spec
        return batch_spec(spec.layout, action_dim=spec.action_dim, state_dim=spec.state_dim,
                          text_length=spec.text_length)

    def stored_fields(self) -> Fields:
        """See `Inputs`: latents and text features in place of pixels and tokens."""
        spec = self.spec
        return encoded_batch_spec(spec.layout, action_dim=spec.action_dim, state_dim=spec.state_dim,
                                  text=(spec.text_length, spec.text_dim), latent=spec.latent_shape)

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        return self.text.tokenize(prompt)

    def encode(self, frozen: dict, batch: dict) -> Example:
        """See `Inputs`. A sample without any valid action loses its action slots and state here, so that nothing
        standing in them can reach a video output."""
        latents, condition, text, image = self.features(frozen, batch)
        first, later = batch["frame_mask"][:, :1], batch["frame_mask"][:, 1:]
        later = later.reshape(len(later), -1, self.spec.layout.temporal_stride)
        action_valid = batch["action_mask"].any(axis=-1)
        has_action = action_valid.any(axis=-1)[:, None, None]
        return Example(
            latents=latents, condition=condition, text=text, image=image,
            frame_valid=jnp.concatenate([first, later.all(axis=-1)], axis=1),
            actions=jnp.where(batch["action_mask"], batch["actions"], 0),
            action_mask=batch["action_mask"], action_valid=action_valid,
            state=jnp.where(has_action, batch["state"], 0), sample_index=batch["sample_index"])

    def features(self, frozen: dict, batch: dict):
        """(latents, condition, text, image), as stored in the batch or by the frozen encoders."""
        if "latents" in batch:
            return batch["latents"].astype(jnp.float32), None, batch["text_features"].astype(jnp.float32), None
        text = self.text.encode(frozen["text"], batch["text_ids"], batch["text_length"])
        return self.video.encode(frozen["video"], to_pixels(batch["video"])), None, text, None

    def store(self, frozen: dict, batch: dict) -> dict[str, jax.Array]:
        return {"latents": self.video.encode(frozen["video"], to_pixels(batch["video"])).astype(jnp.bfloat16)}

    def conditions(self, frozen: dict, example: Example) -> Conditions:
        """See `Inputs`: the first frame, and as `history` the executed actions."""
        return Conditions(
            example.latents[:, :1], example.text, example.state, example.condition, example.image,
            unconditional_text=self.unconditional_text(frozen, len(example.text)), actions=example.actions,
            action_mask=example.action_mask)

    def start(self, frozen: dict, frames, text_ids, text_length) -> Conditions:
        """See `Inputs`: conditions without a state, from first frames uint8 [B, 1, H, W, 3]."""
        text = self.text.encode(frozen["text"], text_ids, text_length)
        latents = self.video.encode(frozen["video"], to_pixels(frames))
        return Conditions(latents, text, None, unconditional_text=self.unconditional_text(frozen, len(frames)))

    def unconditional_text(self, frozen: dict, batch_size: int):
        """[B, Lt, text_dim]: what guidance leads away from."""
        return self.fixed_text(frozen, self.unconditional, batch_size)

    def fixed_text(self, frozen: dict, prompt: str, batch_size: int):
        """[B, Lt, text_dim]: features of one prompt."""
        ids, length = self.text.tokenize(prompt)
        return self.text.encode(frozen["text"], jnp.tile(ids, (batch_size, 1)), jnp.full(batch_size, length))

    def picture_shapes(self) -> jax.ShapeDtypeStruct:
        """See `Inputs`: one canvas."""
        layout = self.spec.layout
        return jax.ShapeDtypeStruct((1, layout.height, layout.width, 3), jnp.uint8)

    def encode_block(self, frozen: dict, frames):
        """See `Inputs`: frames uint8 [B, stride n, H, W, 3] of a block after the first -> latents [B, n, h, w, C].

        The codec wants a first frame alone; those before this block are gone: its own first frame stands in for them,
        as in the published server (docs/references/dreamzero.md). A codec without memory, such as PatchPca, gives the
        training latents.
        """
        video = to_pixels(frames)
        return self.video.encode(frozen["video"], jnp.concatenate([video[:, :1], video], axis=1))[:, 1:]

    def decode_block(self, frozen: dict, latents):
        later = self.video.decode(frozen["video"], jnp.concatenate([latents[:, :1], latents], axis=1))
        return to_bytes(later[:, 1:])
