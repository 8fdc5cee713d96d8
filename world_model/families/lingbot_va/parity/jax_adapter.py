"""LingBot-VA in JAX as it is compared: numpy in, numpy out, feature orders as in the reference."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from world_model import functional
from world_model.families.base.golden import ReferenceAdapter
from world_model.families.lingbot_va import cached
from world_model.families.lingbot_va.layout import LingBotVASpec, Modality, frame_rotary
from world_model.families.lingbot_va.loss import LingBotVALoss, Sampled
from world_model.families.lingbot_va.model import LingBotVA
from world_model.families.lingbot_va.sampler import LingBotVASampler
from world_model.families.lingbot_va.weights.names import LINGBOT_VA
from world_model.families.wan.inputs import Example
from world_model.weights import names, transforms


class Training(NamedTuple):
    """One training batch with given samples: per-frame arrays are [B, F]."""

    inputs: dict[str, np.ndarray]  # what the loss made of what was sampled: fields of model.ForwardInputs
    video: np.ndarray  # velocities [B, F, h, w, C]
    action: np.ndarray  # [B, N, action_dim]
    video_frames: np.ndarray  # weighted losses
    action_frames: np.ndarray
    video_weights: np.ndarray
    action_weights: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]  # reference name -> gradient; tensors that nothing reads have none
    hidden: np.ndarray  # [L, B, tokens, D] of [clean video] [clean actions] [noisy video] [noisy actions]


class LingBotVAAdapter(ReferenceAdapter):
    """The JAX model of `spec` with `params`."""

    module = LingBotVA

    @classmethod
    def table(cls, spec: LingBotVASpec) -> names.NameTable:
        return LINGBOT_VA

    def trainer(self, example: Example, shift: float, action_shift: float) -> Callable[[Sampled, dict], Training]:
        """Forward, losses and gradients of one batch as a function of what is sampled, compiled once.

        Its second argument replaces timesteps of the inputs: the network tells a float32 step at t = 1000 apart, and
        a reference's own table may be rounded another way. The empty prompt is never sampled.
        """
        goal = LingBotVALoss(self.model, shift=shift, action_shift=action_shift, text_dropout=0)
        frames = example.frame_valid.size
        counts = {"frames": np.float32(frames), "actions": np.float32(frames)}

        @jax.jit
        def step(params, sampled, timesteps):
            inputs = goal.inputs(example, sampled)._replace(**timesteps)
            velocity, hidden = functional.bind(self.model, params).with_hidden(inputs)
            targets = goal.targets(example, sampled)
            video, action = goal.errors(velocity._asdict(), targets, example)
            def loss(p):
                predicted = functional.bind(self.model, p)(inputs)._asdict(), None
                return goal.loss_of(predicted, targets, example, sampled, counts)[0]
            return (inputs, velocity, (video, goal.action_frames(action, example)), goal.weights(sampled),
                    jax.value_and_grad(loss)(params), hidden)

        return lambda sampled, timesteps: self._training(*jax.device_get(step(self.params, sampled, timesteps)))

    def _training(self, inputs, velocity, errors, weights, loss_and_gradients, hidden) -> Training:
        loss, gradients = loss_and_gradients
        unread = tuple(published + "." for published, *_ in LINGBOT_VA.unread_modules)
        gradients = {name: g for name, g in names.to_published(gradients, self.spec.head_dim, LINGBOT_VA)
                     if not name.startswith(unread)}
        video_frames, action_frames = (e * w for e, w in zip(errors, weights, strict=True))
        video_weights, action_weights = weights
        return Training(inputs._asdict(), velocity.video, velocity.action, video_frames, action_frames, video_weights,
                        action_weights, float(loss), gradients, hidden)

    def start(self, text: np.ndarray, chunk_frames: int, window_blocks: int) -> "CachedLingBotVAAdapter":
        """Cached inference; text [B, Lt, text_dim]."""
        return CachedLingBotVAAdapter(self, text, chunk_frames, window_blocks)

    def rollout(self, **settings) -> LingBotVASampler:
        """The serving loop."""
        return LingBotVASampler(self.model, **settings)


class CachedLingBotVAAdapter:
    """Single passes over a ring of cached blocks."""

    def __init__(self, adapter: LingBotVAAdapter, text: np.ndarray, chunk_frames: int, window_blocks: int):
        self.adapter, self.chunk_frames = adapter, chunk_frames
        def bound(f):
            return jax.jit(lambda p, *args: f(functional.bind(adapter.model, p), *args))
        self._passes = {Modality.VIDEO: bound(cached.video_pass), Modality.ACTION: bound(cached.action_pass)}
        self.context = bound(lambda model, text: model.encode_context(text))(adapter.params, text)
        self.ring = cached.make_ring(adapter.spec, len(text), chunk_frames, window_blocks)

    def run(self, x: np.ndarray, timestep: np.ndarray, chunk: int, *, modality: Modality, write: bool) -> np.ndarray:
        """Velocities of a chunk's video [B, K, h, w, C] or actions [B, K n, A]; timestep [B, K]."""
        frames = range(chunk * self.chunk_frames, (chunk + 1) * self.chunk_frames)
        velocity, ring = self._passes[modality](
            self.adapter.params, cached.Episode(self.context, self.ring, chunk), x, timestep,
            frame_rotary(self.adapter.spec, modality, frames))
        self.ring = ring if write else self.ring
        return np.asarray(velocity)

    def cached_blocks(self, below: int) -> np.ndarray:
        """The block of every cached token, of blocks < below, in the order of writing."""
        blocks = cached.cached_tokens(self.adapter.spec, self.ring)[1]
        return blocks[blocks < below]

    def keys_values(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """[B, tokens, n, d] each, in the order of writing; layers count from 0, -1 is the last."""
        last = layer in (-1, self.adapter.spec.num_layers - 1)
        keys, values = self.ring.cache.final if last else (x[layer] for x in self.ring.cache.layers)
        index = cached.cached_tokens(self.adapter.spec, self.ring)[0]
        keys = transforms.ROTARY.to_published(np.asarray(keys), self.adapter.spec.head_dim)
        return keys[:, index], np.asarray(values)[:, index]
