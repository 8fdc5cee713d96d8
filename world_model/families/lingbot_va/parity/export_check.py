"""LingBot-VA's side of the parity report: the same rollouts in JAX and in PyTorch, from the same noise.

Every chunk is predicted twice: after what really happened (`reacting`: observations enter the cache), which is how a
policy runs, and after the model's own predictions (`imagined`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from world_model.families.base.export import arrays, normal
from world_model.families.lingbot_va.sampler import LingBotVASampler
from world_model.families.wan.inputs import Conditions


class FixedInputs(NamedTuple):
    """One sample of random numbers that never change."""

    latents: np.ndarray  # [1, F, h, w, C]
    actions: np.ndarray  # [1, F n, A], as executed
    text: np.ndarray  # [1, text_length, text_dim]
    keys: jax.Array


def fixed_inputs(sampler: LingBotVASampler) -> FixedInputs:
    """Fixed inputs at the sizes of the sampler's model."""
    rng, spec = np.random.default_rng(0), sampler.model.spec

    frames, text = spec.layout.latent_frames, normal(rng, spec.text_length, spec.text_dim)
    text[:, spec.text_length // 2:] = 0  # past the prompt
    return FixedInputs(normal(rng, frames, spec.latent_height, spec.latent_width, spec.latent_channels),
                       normal(rng, frames * spec.actions_per_frame, spec.action_dim), text,
                       jax.random.split(jax.random.key(0), 1))


def jax_outputs(sampler: LingBotVASampler, params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """entry -> array, in the order of computation: what `torch_outputs` should be."""
    inputs, params = fixed_inputs(sampler), arrays(params)
    conditions = Conditions(inputs.latents[:, :1], inputs.text, None, unconditional_text=np.zeros_like(inputs.text),
                            actions=inputs.actions)
    entries = {}
    with jax.default_matmul_precision("highest"):
        for name, history in (("reacting", inputs.latents), ("imagined", None)):
            out = sampler(params, conditions, inputs.keys, history=history)
            entries |= _entries(sampler, name, out.latents, out.actions)
    return entries


def torch_outputs(sampler: LingBotVASampler, directory: Path, dtype: str = "float32") -> dict[str, np.ndarray]:
    """entry -> array from an exported directory, by a network that computes in `dtype`. Raises WeightsError where it
    does not load."""
    import torch  # extra: torch

    from world_model.families.lingbot_va.torch.network import load
    from world_model.families.lingbot_va.torch.sampler import LingBotVATorchSampler

    def tensor(x):
        return torch.from_numpy(np.array(x))

    inputs, (network, spec, settings) = fixed_inputs(sampler), load(directory, dtype=dtype)
    noise = [tuple(map(tensor, sampler.noise(inputs.keys, chunk, frames.stop - frames.start)))
             for chunk, frames in enumerate(sampler.chunks())]
    latents, actions, text = map(tensor, inputs[:3])
    entries = {}
    for name, history in (("reacting", (latents, actions)), ("imagined", None)):
        found = LingBotVATorchSampler(network, spec, **settings)(
            latents[:, :1], text, noise, torch.zeros_like(text), history)
        entries |= _entries(sampler, name, found[0], found[1][:, spec.actions_per_frame:])
    return entries


def _entries(sampler: LingBotVASampler, name: str, latents, actions) -> dict[str, np.ndarray]:
    entries, n = {}, sampler.model.spec.actions_per_frame
    for chunk, frames in enumerate(sampler.chunks()):
        entries[f"{name}/chunk{chunk}_latents"] = np.asarray(latents)[:, frames]
        if frames.stop > 1:  # group 0 leads to the first frame and is left out
            entries[f"{name}/chunk{chunk}_actions"] = np.asarray(actions)[
                :, max(frames.start - 1, 0) * n:(frames.stop - 1) * n]
    return entries
