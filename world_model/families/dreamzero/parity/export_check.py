"""What an exported DreamZero is asked to compute: one sample of fixed random numbers, and the answers of both sides."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from world_model.batch import Layout
from world_model.families.base.export import arrays, normal
from world_model.families.dreamzero.layout import MASK_CHANNELS
from world_model.families.dreamzero.model import ForwardInputs
from world_model.families.dreamzero.sampler import DreamZeroSampler
from world_model.families.wan.inputs import Conditions
from world_model.functional import bind


class FixedInputs(NamedTuple):
    """One sample of random numbers that never change."""

    parts: dict  # inputs of a training forward
    conditions: Conditions  # what the sampler starts from
    keys: jax.Array
    noise: list[tuple[np.ndarray, np.ndarray]]  # noise of video and actions that those keys give, per block


def fixed_inputs(sampler: DreamZeroSampler) -> FixedInputs:
    """Fixed inputs at the sizes of the sampler's model."""
    rng, spec, layout = np.random.default_rng(0), sampler.model.spec, sampler.model.spec.layout

    def time(count):
        return rng.uniform(0, 1000, size=(1, count)).astype(np.float32)

    frames = layout.latent_frames, spec.latent_height, spec.latent_width
    latent, text = (*frames, spec.latent_channels), normal(rng, spec.text_length, spec.text_dim)
    text[:, spec.text_length // 2:] = 0  # past the prompt
    parts = {
        "clean_latents": normal(rng, *latent), "noisy_latents": normal(rng, *latent), "text": text,
        "video_timestep": time(layout.latent_frames), "action_timestep": time(layout.num_actions),
        "noisy_actions": normal(rng, layout.num_actions, spec.action_dim),
        "state": rng.uniform(-1, 1, size=(1, layout.num_states, spec.state_dim)).astype(np.float32),
        "condition": normal(rng, *frames, MASK_CHANNELS + latent[-1]) if spec.concat_first_frame else None,
        "image": normal(rng, spec.image_tokens, spec.image_dim) if spec.image_dim else None}
    conditions = Conditions(first_latents=parts["clean_latents"][:, :1], unconditional_text=np.zeros_like(text),
                            **{name: parts[name] for name in ("text", "state", "condition", "image")})
    keys = jax.random.split(jax.random.key(0), 1)
    noise = [tuple(map(np.asarray, sampler.noise(keys, i + 1))) for i in range(layout.num_blocks)]
    return FixedInputs(parts, conditions, keys, noise)


def jax_outputs(sampler: DreamZeroSampler, params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """entry -> array, in the order of computation: what `torch_outputs` should be."""
    model, params, inputs = sampler.model, arrays(params), fixed_inputs(sampler)
    with jax.default_matmul_precision("highest"):
        velocity, hidden = jax.jit(lambda p, x: bind(model, p).with_hidden(x))(params, ForwardInputs(**inputs.parts))
        prediction = sampler(params, inputs.conditions, inputs.keys)
    forward = _forward_entries(*map(np.asarray, (*velocity, hidden)))
    return forward | _rollout_entries(model.spec.layout, prediction.latents, prediction.actions)


def torch_outputs(sampler: DreamZeroSampler, directory: Path, dtype: str = "float32") -> dict[str, np.ndarray]:
    """entry -> array from an exported directory, by a network that computes in `dtype`; in other dtypes than float32
    the rollout alone. Raises WeightsError where it does not load."""
    import torch  # extra: torch

    from world_model.families.dreamzero.torch.adapter import TorchAdapter
    from world_model.families.dreamzero.torch.loading import load
    from world_model.families.dreamzero.torch.sampler import DreamZeroTorchSampler

    def tensor(x):
        return torch.from_numpy(np.array(x))

    inputs, (runtime, settings) = fixed_inputs(sampler), load(directory, dtype=getattr(torch, dtype))
    latents, actions = DreamZeroTorchSampler(runtime, **settings)(
        noise=[tuple(map(tensor, pair)) for pair in inputs.noise],
        **{name: tensor(x) for name, x in inputs.conditions._asdict().items() if x is not None})
    forward = _forward_entries(*TorchAdapter(runtime).forward(inputs.parts)) if dtype == "float32" else {}
    return forward | _rollout_entries(runtime.layout, latents, actions)


def _forward_entries(video, action, hidden) -> dict[str, np.ndarray]:
    entries = {f"forward/block{i}": x for i, x in enumerate(hidden)}
    return entries | {"forward/video": video, "forward/action": action}


def _rollout_entries(layout: Layout, latents, actions) -> dict[str, np.ndarray]:
    n, m, entries = layout.frames_per_block, layout.actions_per_block, {}
    for i in range(layout.num_blocks):
        entries[f"rollout/block{i + 1}_latents"] = np.asarray(latents)[:, 1 + i * n:1 + (i + 1) * n]
        entries[f"rollout/block{i + 1}_actions"] = np.asarray(actions)[:, i * m:(i + 1) * m]
    return entries
