"""What the losses of video families share: settings, tables of noise levels, errors by frame."""

import dataclasses

import jax.numpy as jnp

from world_model.diffusion.flow_matching import noise_levels, velocity
from world_model.families.base.loss import Loss
from world_model.families.wan.inputs import Example


@dataclasses.dataclass(frozen=True)
class VideoLoss(Loss):
    """Plain values from the config's `loss` section."""

    video_weight: float = 1.0
    action_weight: float = 1.0
    weighting: str = "bell"  # bell | uniform
    action_average: str = "slots"  # slots | valid

    def __post_init__(self):
        if self.weighting not in ("bell", "uniform"):
            raise ValueError(f"loss.weighting = {self.weighting!r}: expected bell or uniform")
        if self.action_average not in ("slots", "valid"):
            raise ValueError(f"loss.action_average = {self.action_average!r}: expected slots or valid")

    def latent_frame_mask(self, batch: dict):
        """bool [B, F]: a latent frame is valid if its last raw frame is."""
        return batch["frame_mask"][:, ::self.model.spec.layout.temporal_stride]

    def targets(self, example: Example, sampled) -> dict:
        """See `Loss`; what was sampled has noise and action_noise."""
        return {"video": velocity(example.latents, sampled.noise),
                "action": velocity(example.actions, sampled.action_noise)}

    def level_tables(self, shift: float):
        """(sigmas, timesteps, loss weights) of the training levels, by index."""
        sigmas, timesteps, weights = (jnp.asarray(table) for table in noise_levels(shift))
        return sigmas, timesteps, jnp.ones_like(weights) if self.weighting == "uniform" else weights


def lower_level(index, by: float, sigmas) -> tuple:
    """(indices of levels less noisy by that share of the table, the last at most; ratios of their sigmas to what they
    were)."""
    lower = jnp.minimum(index + round(by * len(sigmas)), len(sigmas) - 1)
    return lower, sigmas[lower] / sigmas[index]


def frame_errors(predicted, target):
    """Mean square per latent frame, float32 [B, F]. An odd target row or column has no prediction and is cropped."""
    target = target[:, :, :predicted.shape[2], :predicted.shape[3]]
    return jnp.square(predicted.astype(jnp.float32) - target).mean(axis=(2, 3, 4))
