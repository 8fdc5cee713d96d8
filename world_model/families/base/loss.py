"""Losses: noise is sampled, velocities are predicted, errors are weighed. A loss knows no encoder.

Every random draw is a function of (seed, step, use, global sample index): neither mesh nor host count changes it, and a
microbatch draws what its samples would draw in the whole batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from world_model import functional
from world_model.diffusion import flow_matching
from world_model.parallel import axes

BUCKETS = 4  # ranges of sigma, for losses by noise level
LEAST_SIGMA = 1e-3  # of actions; where there is no noise, there is nothing to learn


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is minimised; a family says what it samples and how errors count."""

    model: Any  # the family's module, abstract: structure without arrays

    def count(self, batch: dict) -> dict:
        """Denominators, of the whole global batch as the loader gives it."""
        raise NotImplementedError

    def sample(self, keys: Callable[[int], jax.Array], example, key: jax.Array):
        """All that is random, for `loss_at`. keys(use) gives one key per sample, `key` is the step's."""
        raise NotImplementedError

    def loss_at(self, params: dict, example, sampled, counts: dict):
        """(loss, metrics) of what was sampled."""
        return self.loss_of(self.predict(params, example, sampled), self.targets(example, sampled), example, sampled,
                            counts)

    def predict(self, params: dict, example, sampled) -> tuple[dict, Any]:
        """({stream: velocity}, whatever else of the network's answer the loss reads)."""
        raise NotImplementedError

    def targets(self, example, sampled) -> dict:
        """{stream: velocity} between the data and the noise."""
        raise NotImplementedError

    def loss_of(self, predicted: tuple[dict, Any], targets: dict, example, sampled, counts: dict):
        """(loss, metrics) of what `predict` gave, against targets of its shapes or `targets`."""
        raise NotImplementedError

    def quieter(self, sampled, by: float, streams: set[str]) -> tuple[Any, dict]:
        """(what was sampled, those streams at noise levels lower by that share of all levels; {stream: ratio of the new
        sigma to the old one, which broadcasts against its velocity}). The noise stays."""
        raise NotImplementedError

    def after_step(self, params: dict, metrics: dict) -> tuple[dict, dict]:
        """(parameters, metrics) after an optimizer step, where some parameters follow a rule instead of a gradient.

        params: those that train; metrics: summed over the whole batch. Held-out losses come through here with no
        parameters at all.
        """
        return params, metrics

    def __call__(self, params: dict, example, key: jax.Array, counts: dict):
        """(loss, metrics), additive over microbatches of one batch; example: what the family's inputs encode."""
        def keys(use: int):
            of_use = jax.random.fold_in(key, use)
            return jax.vmap(lambda i: jax.random.fold_in(of_use, i))(example.sample_index)

        shapes = functional.shapes(type(self.model), self.model.spec)
        params = axes.gather_weights(params, shapes, self.model.param_axes)
        return self.loss_at(params, example, self.sample(keys, example, key), counts)


@dataclasses.dataclass(frozen=True)
class ActionLoss(Loss):
    """A loss of actions alone, with one noise level per sample: `sample` gives (sigma [B], noise [B, N, A])."""

    def count(self, batch: dict) -> dict:
        """See `Loss`: the valid values."""
        return {"actions": jnp.maximum(batch["action_mask"].sum() * 1.0, 1)}

    def targets(self, example, sampled) -> dict:
        """See `Loss`."""
        return {"action": flow_matching.velocity(example.actions, sampled[1])}

    def quieter(self, sampled, by: float, streams: set[str]) -> tuple[Any, dict]:
        """See `Loss`."""
        lower = jnp.maximum(sampled[0] - by, LEAST_SIGMA)
        return (lower, sampled[1]), {"action": (lower / sampled[0])[:, None, None]}


def normal(keys, shape):
    """One float32 draw per sample's key: [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def by_level(name: str, error, valid, sigma) -> dict:
    """Sums and counts of unweighted errors by range of sigma: "<name>_loss_sigma_<range>/sum" and "/count"."""
    bucket = jnp.minimum((sigma * BUCKETS).astype(jnp.int32), BUCKETS - 1)
    metrics = {}
    for i in range(BUCKETS):
        inside = valid & (bucket == i)
        label = f"{name}_loss_sigma_{i / BUCKETS:.2f}-{(i + 1) / BUCKETS:.2f}"
        metrics |= {f"{label}/sum": jnp.where(inside, error, 0).sum(), f"{label}/count": inside.sum() * 1.0}
    return metrics
