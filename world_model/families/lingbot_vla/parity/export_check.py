"""LingBot-VLA's side of the parity report: actions from the same noise in JAX and in PyTorch, with all views, without
one, and around actions that are given."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from world_model.diffusion.inpainting import Inpainting
from world_model.families.base.export import arrays
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.sampler import LingBotVLASampler
from world_model.families.lingbot_vla.vision import make_patches

SAMPLES = ("all_views", "a_view_missing", "half_given")


class FixedInputs(NamedTuple):
    """Random numbers that never change, a sample for each of SAMPLES; the second has a shorter prompt."""

    views: np.ndarray  # uint8 [3, V, H, W, 3]
    view_mask: np.ndarray  # bool [3, V]
    text_ids: np.ndarray  # int32 [3, text_length]
    text_length: np.ndarray  # int32 [3]
    state: np.ndarray  # float32 [3, state_dim]
    noise: np.ndarray  # float32 [3, N, action_dim]
    given: Inpainting  # the first half of the third sample's actions


def fixed_inputs(sampler: LingBotVLASampler) -> FixedInputs:
    """Fixed inputs at the sizes of the sampler's model."""
    rng, spec = np.random.default_rng(0), sampler.model.spec
    layout, count = spec.layout, len(SAMPLES)
    shape = count, layout.actions_per_block, spec.action_dim
    view_mask, given = np.ones((count, spec.views), bool), np.zeros(shape, bool)
    view_mask[1, spec.views // 2] = spec.views == 1
    given[2, :shape[1] // 2] = True
    return FixedInputs(
        rng.integers(0, 256, (count, spec.views, layout.height, layout.width, 3), np.uint8), view_mask,
        rng.integers(0, spec.vocab_size, (count, spec.text_length), np.int32),
        np.int32([spec.text_length, spec.text_length // 2, spec.text_length]),
        rng.normal(size=(count, spec.state_dim)).astype(np.float32), rng.normal(size=shape).astype(np.float32),
        Inpainting(rng.normal(size=shape).astype(np.float32), given))


def jax_outputs(sampler: LingBotVLASampler, params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """entry -> array: what `torch_outputs` should be."""
    inputs = fixed_inputs(sampler)
    with jax.default_matmul_precision("highest"):
        example = Example(make_patches(sampler.model.spec, inputs.views), *inputs[1:5])
        return _entries(np.asarray(sampler.denoise(arrays(params), example, inputs.noise, inputs.given)))


def torch_outputs(sampler: LingBotVLASampler, directory: Path, dtype: str = "float32") -> dict[str, np.ndarray]:
    """entry -> array from an exported directory, by a network that computes in `dtype`. Raises WeightsError where it
    does not load."""
    import torch  # extra: torch

    from world_model.families.lingbot_vla.torch.network import load
    from world_model.families.lingbot_vla.torch.sampler import LingBotVLATorchSampler

    def tensor(x):
        return torch.from_numpy(np.array(x))

    inputs, (network, spec, settings) = fixed_inputs(sampler), load(directory, dtype=dtype)
    runtime = LingBotVLATorchSampler(network, spec, **settings)
    prefix, given = runtime.encode_prefix(*map(tensor, inputs[:4])), Inpainting(*map(tensor, inputs.given[:2]))
    return _entries(runtime.denoise(prefix, tensor(inputs.state), tensor(inputs.noise), given).numpy())


def _entries(actions: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}/actions": x for name, x in zip(SAMPLES, actions, strict=True)}
