"""The JAX model behind the methods that its PyTorch twin has too (torch/adapter.py): numpy in, numpy out, to compare.

Parts are named as in model.ForwardInputs; what has a feature order is in the reference's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model import functional
from world_model.diffusion import solvers
from world_model.families.base.golden import ReferenceAdapter
from world_model.families.dreamzero import cached
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.dreamzero.loss import DreamZeroLoss, Sampled
from world_model.families.dreamzero.model import DreamZero, ForwardInputs
from world_model.families.dreamzero.weights.names import DREAMZERO
from world_model.families.wan.inputs import Example
from world_model.weights import names, transforms

Parts = Mapping[str, np.ndarray | None]


class Output(NamedTuple):
    """Velocities; hidden states of [clean video] [noisy video] [actions] [states] after each layer."""

    video: np.ndarray  # [B, F, h, w, C]
    action: np.ndarray | None  # [B, N, action_dim]
    hidden: list[np.ndarray] | None = None  # [B, L, D] each


class Losses(NamedTuple):
    """Training losses of given noise, unit weights, and what they do to the parameters."""

    video: float
    action: float
    gradient_norms: dict[str, float]  # reference name -> norm of the gradient of video + action


class JaxAdapter(ReferenceAdapter):
    """The JAX model of `spec` with `params`."""

    module = DreamZero

    def __init__(self, spec: DreamZeroSpec, params: Mapping[str, jax.Array]):
        super().__init__(spec, params)
        self._forward = jax.jit(lambda p, inputs: functional.bind(self.model, p).with_hidden(inputs))

    @classmethod
    def table(cls, spec: DreamZeroSpec) -> names.NameTable:
        return DREAMZERO

    def forward(self, parts: Parts) -> Output:
        """Runs the forward over a whole window; without clean_latents, in the form that has no clean copy."""
        (video, action), hidden = self._forward(self.params, ForwardInputs(**parts))
        action = None if action is None else np.asarray(action)
        return Output(np.asarray(video), action, list(np.asarray(hidden)))

    def losses(self, example: Parts) -> Losses:
        """Losses and gradient norms as in training.

        example: latents, condition, text, image, actions, action_mask, state as in wan.inputs.Example, with
        noise, action_noise and the level indices video_index [B, F], action_index [B, N].
        """
        example = dict(example)
        sampled = Sampled(**{name: example.pop(name) for name in Sampled._fields if name in example})
        frames, actions = example["latents"].shape[:2], example["actions"].shape
        whole = Example(**example, frame_valid=np.ones(frames, bool), action_valid=np.ones(actions[:2], bool))
        counts = {"frames": np.float32(np.prod(frames)), "actions": np.float32(np.prod(actions))}
        loss = DreamZeroLoss(self.model)
        step = jax.jit(jax.value_and_grad(lambda p: loss.loss_at(p, whole, sampled, counts), has_aux=True))
        (_, metrics), gradients = step(self.params)
        norms = {k: float(np.linalg.norm(g)) for k, g in names.to_published(gradients, self.spec.head_dim, DREAMZERO)}
        return Losses(float(metrics["video_loss"]), float(metrics["action_loss"]), norms)

    def start(self, text: np.ndarray, image: np.ndarray | None, table: str) -> "CachedJaxAdapter":
        """Cached inference under the visibility table of that name."""
        return CachedJaxAdapter(dataclasses.replace(self.spec, rollout_visibility=table), self.params, text, image)

    def solve(self, velocity: Callable, sample: np.ndarray, solver: solvers.Euler | solvers.UniPC,
              run: np.ndarray) -> np.ndarray:
        """All samples [steps + 1, ...]; velocity(sample, timestep) is asked for where run [steps] is True."""
        samples, carry = [sample], solver.init(jnp.asarray(sample))
        for i, fresh in enumerate(run):
            if fresh:
                v = velocity(samples[-1], solver.timesteps[i])
            x, carry = solver.step(i, v, jnp.asarray(samples[-1]), carry)
            samples.append(np.asarray(x))
        return np.stack(samples)


class CachedJaxAdapter:
    """One cached rollout."""

    def __init__(self, spec: DreamZeroSpec, params: Mapping[str, jax.Array], text, image):
        self.spec, self.params, self.block = spec, params, 0
        model = functional.abstract(DreamZero, spec)
        def bound(f):
            return jax.jit(lambda p, *args: f(functional.bind(model, p), *args))
        self._prefill, self._denoise = bound(cached.prefill), bound(cached.denoise)
        self.context = bound(cached.encode_context)(params, text, image)
        self.cache = cached.empty_cache(spec, text.shape[0])

    def prefill(self, clean_latents: np.ndarray, condition: np.ndarray | None) -> None:
        """Clean latents of the next block into the cache; block 0 is the first frame."""
        self.cache = self._prefill(self.params, self.cache, self.context, clean_latents, condition,
                                   self.block)
        self.block += 1

    def denoise(self, parts: Parts, condition: np.ndarray | None) -> Output:
        """Velocities of the block that follows the cached ones; `parts` as in ForwardInputs, of this block."""
        noisy = cached.Noisy(parts["noisy_latents"], parts["video_timestep"], parts["noisy_actions"],
                             parts["action_timestep"], parts["state"])
        video, action = self._denoise(self.params, self.cache, self.context, noisy, condition, self.block)
        return Output(np.asarray(video), np.asarray(action))

    def keys_values(self, layer: int) -> np.ndarray:
        """[2, B, L, n, d] of the clean tokens cached so far; layers count from 0, -1 is the last."""
        last = layer in (-1, self.spec.num_layers - 1)
        keys, values = self.cache.final if last else (x[layer] for x in self.cache.layers)
        frames = int(cached.first_frame(self.spec, self.block))
        keys = transforms.ROTARY.to_published(np.asarray(keys), self.spec.head_dim)
        return np.stack([keys, np.asarray(values)])[:, :, :frames * self.spec.tokens_per_frame]
