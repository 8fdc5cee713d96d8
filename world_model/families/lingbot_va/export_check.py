"""LingBot-VA's side of the parity report: the same rollouts in JAX and in PyTorch, from the same noise.

Every chunk is predicted twice: after what really happened (`reacting`: observations enter the cache), which is how a
policy runs, and after the model's own predictions (`imagined`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from world_model.families.base.sampler import Conditions
from world_model.families.lingbot_va.sampler import LingBotVARollout


class FixedInputs(NamedTuple):
    """One sample of random numbers that never change."""

    latents: np.ndarray  # [1, F, h, w, C]
    actions: np.ndarray  # [1, F n, A], as executed
    text: np.ndarray  # [1, text_length, text_dim]
    keys: jax.Array


def fixed_inputs(rollout: LingBotVARollout) -> FixedInputs:
    """At the sizes of the rollout's model."""
    rng, spec = np.random.default_rng(0), rollout.model.spec
    normal = lambda *shape: rng.normal(size=(1, *shape)).astype(np.float32)
    frames, text = spec.layout.latent_frames, normal(spec.text_length, spec.text_dim)
    text[:, spec.text_length // 2:] = 0  # past the prompt
    return FixedInputs(normal(frames, spec.latent_height, spec.latent_width, spec.latent_channels),
                       normal(frames * spec.actions_per_frame, spec.action_dim), text,
                       jax.random.split(jax.random.key(0), 1))


def jax_outputs(rollout: LingBotVARollout, params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """entry -> array, in the order of computation: what `torch_outputs` should be."""
    inputs = fixed_inputs(rollout)
    conditions = Conditions(inputs.latents[:, :1], inputs.text, None, unconditional_text=np.zeros_like(inputs.text),
                            actions=inputs.actions)
    entries = {}
    with jax.default_matmul_precision("highest"):
        for name, history in (("reacting", inputs.latents), ("imagined", None)):
            out = rollout(dict(params), conditions, inputs.keys, history=history)
            entries |= _entries(rollout, name, out.latents, out.actions)
    return entries


def torch_outputs(rollout: LingBotVARollout, directory: Path) -> dict[str, np.ndarray]:
    """The same from an exported directory. Raises WeightsError where it does not load."""
    import torch  # extra: torch

    from world_model.families.lingbot_va.torch.network import load
    from world_model.families.lingbot_va.torch.sampler import Rollout

    inputs, (network, spec, settings) = fixed_inputs(rollout), load(directory)
    tensor = lambda x: torch.from_numpy(np.array(x))
    noise = [tuple(map(tensor, rollout.noise(inputs.keys, chunk, frames.stop - frames.start)))
             for chunk, frames in enumerate(rollout.chunks())]
    latents, actions, text = map(tensor, inputs[:3])
    entries = {}
    for name, history in (("reacting", (latents, actions)), ("imagined", None)):
        found = Rollout(network, spec, **settings)(latents[:, :1], text, noise, torch.zeros_like(text), history)
        entries |= _entries(rollout, name, found[0], found[1][:, spec.actions_per_frame:])
    return entries


def _entries(rollout: LingBotVARollout, name: str, latents, actions) -> dict[str, np.ndarray]:
    entries, n = {}, rollout.model.spec.actions_per_frame
    for chunk, frames in enumerate(rollout.chunks()):
        entries[f"{name}/chunk{chunk}_latents"] = np.asarray(latents)[:, frames]
        if frames.stop > 1:  # group 0 leads to the first frame and is left out
            entries[f"{name}/chunk{chunk}_actions"] = np.asarray(actions)[
                :, max(frames.start - 1, 0) * n:(frames.stop - 1) * n]
    return entries
