"""Shows an exported LingBot-VLA to launch.check_policy, as an adapter for a policy of your own would be written.

    WAMAX_EXPORT=DIR PYTHONPATH=examples python -m launch.check_policy check_an_export:adapter
"""

import os

import torch

from launch.policy_check.adapter import Adapter
from world_model.families.lingbot_vla.torch.network import load, time_sinusoid
from world_model.families.lingbot_vla.torch.sampler import LingBotVLATorchSampler
from world_model.families.lingbot_vla.torch.vision import make_patches


def load_network():
    """The network; what follows the last language layer's keys and values is read by nothing, and not trained."""
    network = load(os.environ["WAMAX_EXPORT"])[0]
    last = network.language.layers[-1]
    for unread in (last.self_attn.q_proj, last.self_attn.o_proj, last.post_attention_layernorm, last.mlp,
                   network.language.norm):
        unread.requires_grad_(False)
    return network


def loss(network, batch, seed):
    """Flow matching over valid values, as in training; what is masked is zero before anything is made of it."""
    rng, shape = torch.Generator().manual_seed(seed), batch["actions"].shape
    noise, time = torch.randn(shape, generator=rng), torch.rand(shape[0], generator=rng)
    actions = torch.where(batch["action_mask"], batch["actions"], 0)
    noisy = actions.lerp(noise, time[:, None, None])
    prefix = network.encode_prefix(batch["patches"], batch["view_mask"], batch["text_ids"], batch["text_length"])
    velocity = network.velocity(prefix, batch["state"], noisy, time_sinusoid(time, network.spec.expert_dim))
    return (velocity - (noise - actions)).abs()[batch["action_mask"]].mean()


def sample(network, batch, seed):
    """Four Euler steps from one noise for all rows."""
    noise = torch.randn(batch["actions"].shape[1:], generator=torch.manual_seed(seed)).expand(batch["actions"].shape)
    prefix = network.encode_prefix(batch["patches"], batch["view_mask"], batch["text_ids"], batch["text_length"])
    return LingBotVLATorchSampler(network, network.spec, steps=4).denoise(prefix, batch["state"], noise)


def adapter() -> Adapter:
    """Two rows, one of an episode that ends within the chunk and lacks a view; a robot of three dimensions."""
    spec, rng = load_network().spec, torch.Generator().manual_seed(0)
    shape = 2, spec.layout.actions_per_block, spec.action_dim
    views = torch.randint(0, 256, (2, spec.views, spec.layout.height, spec.layout.width, 3), generator=rng)
    view_mask, mask = torch.ones(2, spec.views, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    view_mask[0, -1], mask[0, shape[1] // 2:], mask[..., 3:] = False, False, False
    inputs = {"patches": make_patches(spec, views), "view_mask": view_mask,
              "text_ids": torch.randint(0, spec.vocab_size, (2, spec.text_length), generator=rng),
              "text_length": torch.tensor([3, spec.text_length]),
              "state": torch.randn(2, spec.state_dim, generator=rng), "action_mask": mask,
              "actions": torch.randn(shape, generator=rng)}
    unread = torch.arange(spec.text_length) >= inputs["text_length"][:, None]
    return Adapter("LingBot-VLA's export", load_network, inputs, loss, sample, ignored={
        "steps past the end": ("actions", ~mask[..., :1]), "dimensions that the robot lacks": ("actions", ~mask[:, :1]),
        "masked views": ("patches", ~view_mask[..., None, None]), "words past the prompt": ("text_ids", unread)})
