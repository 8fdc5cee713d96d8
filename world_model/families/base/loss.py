"""The training objective: encode, draw noise, predict velocities, weigh the errors. What is drawn is the family's.

Every draw is a function of (seed, step, use, global sample index): neither mesh nor host count changes it, and a
microbatch draws what its samples would draw in the whole batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from world_model import functional
from world_model.diffusion.flow_matching import noise_levels
from world_model.encoders import ImageEncoder, TextEncoder, VideoCodec
from world_model.families.base.sampler import Conditions
from world_model.parallel import axes

BUCKETS = 4  # of sigma, for losses by noise level


class Example(NamedTuple):
    """A batch after the frozen encoders; float32. Families fill `condition` and `image` where they have them."""

    latents: jax.Array  # [B, F, h, w, C]
    condition: jax.Array | None  # [B, F, h, w, 4 + C]
    text: jax.Array  # [B, Lt, text_dim]
    image: jax.Array | None  # [B, Li, image_dim], features of the first frame
    frame_valid: jax.Array  # bool [B, F]
    actions: jax.Array  # [B, N, action_dim]; zeros where masked
    action_mask: jax.Array  # bool [B, N, action_dim]
    action_valid: jax.Array  # bool [B, N]
    state: jax.Array  # [B, S, state_dim]; zeros on a video-only clip


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised; plain values from the config. A family adds what it draws and how it weighs errors.

    A pytree whose leaves are `frozen`: a compiled function that is given an objective has the encoders' arrays for
    arguments; one that closes over it would hold gigabytes of constants.
    """

    model: Any  # the family's module, abstract: structure without arrays
    codec: VideoCodec
    text_encoder: TextEncoder
    frozen: dict  # the encoders' arrays: {"video": ..., "text": ..., "image": ...}, where `loss` is not given them
    image_encoder: ImageEncoder | None = None
    video_weight: float = 1.0
    action_weight: float = 1.0
    weighting: str = "bell"  # bell | uniform
    action_average: str = "slots"  # slots | valid

    def __init_subclass__(cls):
        jax.tree_util.register_pytree_node(
            cls, lambda o: ((o.frozen,), dataclasses.replace(o, frozen=None)),
            lambda rest, leaves: dataclasses.replace(rest, frozen=leaves[0]))

    def __post_init__(self):
        if self.weighting not in ("bell", "uniform"):
            raise ValueError(f"loss.weighting = {self.weighting!r}: expected bell or uniform")
        if self.action_average not in ("slots", "valid"):
            raise ValueError(f"loss.action_average = {self.action_average!r}: expected slots or valid")

    def draw(self, keys: Callable[[int], jax.Array], example: Example, key: jax.Array):
        """All that is random, for `loss_at`. keys(use) gives one key per sample, `key` is the step's."""
        raise NotImplementedError

    def loss_at(self, params: dict, example: Example, drawn, counts: dict):
        """(loss, metrics) of what was drawn."""
        raise NotImplementedError

    def count(self, batch: dict) -> dict:
        """Denominators, of the whole global batch."""
        raise NotImplementedError

    def loss(self, params: dict, batch: dict, key: jax.Array, counts: dict, frozen: dict | None = None):
        """(loss, metrics); all additive over microbatches of one batch. frozen: arrays in place of the held ones."""
        if frozen is not None:
            return dataclasses.replace(self, frozen=frozen).loss(params, batch, key, counts)
        example = self.encode(batch)
        sample_keys = lambda use: jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, use), i))(
            batch["sample_index"])
        params = axes.gathered(params, functional.shapes(type(self.model), self.model.spec))
        return self.loss_at(params, example, self.draw(sample_keys, example, key), counts)

    def encode(self, batch: dict) -> Example:
        """Frozen encoders and masks. A sample without any valid action loses its action slots and state here, so
        that nothing standing in them can reach a video output."""
        latents, condition, text, image = self.stored(batch) if "latents" in batch else self.features(batch)
        first, later = batch["frame_mask"][:, :1], batch["frame_mask"][:, 1:]
        action_valid = batch["action_mask"].any(axis=-1)
        has_action = action_valid.any(axis=-1)[:, None, None]
        return Example(
            latents=latents, condition=condition, text=text, image=image,
            frame_valid=jnp.concatenate([first, later.reshape(len(later), -1, 4).all(axis=-1)], axis=1),
            actions=jnp.where(batch["action_mask"], batch["actions"], 0),
            action_mask=batch["action_mask"],
            action_valid=action_valid,
            state=jnp.where(has_action, batch["state"], 0))

    def features(self, batch: dict):
        """(latents, condition, text, image) by the frozen encoders."""
        video = batch["video"].astype(jnp.float32) / 127.5 - 1
        text = self.text_encoder.encode(self.frozen["text"], batch["text_ids"], batch["text_length"])
        return self.codec.encode(self.frozen["video"], video), None, text, None

    def stored(self, batch: dict):
        """(latents, condition, text, image) as precomputed."""
        return batch["latents"].astype(jnp.float32), None, batch["text_features"].astype(jnp.float32), None

    def begin(self, frames, text_ids, text_length) -> Conditions:
        """What a rollout starts from, without a state: first frames uint8 [B, 1, H, W, 3], text_ids [B, text_length],
        text_length [B]."""
        latents, _, text, _ = Objective.features(self, {"video": frames, "text_ids": text_ids,
                                                        "text_length": text_length})
        return Conditions(latents, text, None, unconditional_text=self.empty_text(len(frames)))

    def empty_text(self, batch_size: int):
        """[B, Lt, text_dim]: features of the empty prompt."""
        ids, length = self.text_encoder.tokenize("")
        return self.text_encoder.encode(self.frozen["text"], jnp.tile(ids, (batch_size, 1)),
                                        jnp.full(batch_size, length))

    def level_tables(self, shift: float):
        """(sigmas, timesteps, loss weights) of the training levels, by index."""
        sigmas, timesteps, weights = (jnp.asarray(table) for table in noise_levels(shift))
        return sigmas, timesteps, jnp.ones_like(weights) if self.weighting == "uniform" else weights


def frame_errors(predicted, target):
    """Mean square per latent frame, float32 [B, F]. An odd target row or column has no prediction and is cropped."""
    target = target[:, :, :predicted.shape[2], :predicted.shape[3]]
    return jnp.square(predicted.astype(jnp.float32) - target).mean(axis=(2, 3, 4))


def by_level(name: str, error, valid, sigma) -> dict:
    """Sums and counts of unweighted errors by range of sigma: "<name>_loss_sigma_<range>/sum" and "/count"."""
    bucket = jnp.minimum((sigma * BUCKETS).astype(jnp.int32), BUCKETS - 1)
    metrics = {}
    for i in range(BUCKETS):
        inside = valid & (bucket == i)
        label = f"{name}_loss_sigma_{i / BUCKETS:.2f}-{(i + 1) / BUCKETS:.2f}"
        metrics |= {f"{label}/sum": jnp.where(inside, error, 0).sum(), f"{label}/count": inside.sum() * 1.0}
    return metrics


def normal(keys, shape):
    """One draw per sample key: float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
