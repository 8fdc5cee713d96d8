"""LingBot-VLA's side of the parity report: actions from the same noise in JAX and in PyTorch, with all views, without
one, and around actions that are given."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from world_model.diffusion.inpainting import Inpainting
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.sampler import LingBotVLASampler
from world_model.families.lingbot_vla.vision import make_patches


class FixedInputs(NamedTuple):
    """Two samples of random numbers that never change; the second lacks a view and has a shorter prompt."""

    views: np.ndarray  # uint8 [2, V, H, W, 3]
    view_mask: np.ndarray  # bool [2, V]
    text_ids: np.ndarray  # int32 [2, text_length]
    text_length: np.ndarray  # int32 [2]
    state: np.ndarray  # float32 [2, state_dim]
    noise: np.ndarray  # float32 [2, N, action_dim]
    given: Inpainting  # the first half of the actions


def fixed_inputs(sampler: LingBotVLASampler) -> FixedInputs:
    """Fixed inputs at the sizes of the sampler's model."""
    rng, spec = np.random.default_rng(0), sampler.model.spec
    layout, shape = spec.layout, (2, spec.layout.actions_per_block, spec.action_dim)
    mask = np.ones((2, spec.views), bool)
    mask[1, spec.views // 2] = spec.views == 1
    first = np.broadcast_to(np.arange(shape[1])[:, None] < shape[1] // 2, shape)
    return FixedInputs(
        rng.integers(0, 256, (2, spec.views, layout.height, layout.width, 3), np.uint8), mask,
        rng.integers(0, spec.vocab_size, (2, spec.text_length), np.int32),
        np.array([spec.text_length, spec.text_length // 2], np.int32),
        rng.normal(size=(2, spec.state_dim)).astype(np.float32), rng.normal(size=shape).astype(np.float32),
        Inpainting(rng.normal(size=shape).astype(np.float32), first))


def jax_outputs(sampler: LingBotVLASampler, params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """entry -> array: what `torch_outputs` should be."""
    inputs = fixed_inputs(sampler)
    with jax.default_matmul_precision("highest"):
        seen = Example(make_patches(sampler.model.spec, inputs.views), *inputs[1:5])
        free, given = (np.asarray(sampler.denoise(dict(params), seen, inputs.noise, known))
                       for known in (None, inputs.given))
    return _entries(free, given)


def torch_outputs(sampler: LingBotVLASampler, directory: Path, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The same from an exported directory, by a network that computes in `dtype`. Raises WeightsError where it does not
    load."""
    import torch  # extra: torch

    from world_model.families.lingbot_vla.torch.network import load
    from world_model.families.lingbot_vla.torch.sampler import LingBotVLATorchSampler

    def tensor(x):
        return torch.from_numpy(np.array(x))

    inputs, (network, spec, settings) = fixed_inputs(sampler), load(directory, dtype=dtype)
    runtime, known = LingBotVLATorchSampler(network, spec, **settings), Inpainting(*map(tensor, inputs.given[:2]))
    seen = runtime.see(*map(tensor, inputs[:4]))
    state, noise = tensor(inputs.state), tensor(inputs.noise)
    free, given = (runtime.denoise(seen, state, noise, known).numpy() for known in (None, known))
    return _entries(free, given)


def _entries(free: np.ndarray, given: np.ndarray) -> dict[str, np.ndarray]:
    return {"all_views/actions": free[0], "a_view_missing/actions": free[1], "half_given/actions": given}
