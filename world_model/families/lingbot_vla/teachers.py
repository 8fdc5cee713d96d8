"""Heads by which frozen teachers shape the query tokens (arXiv 2607.06403): each says, from what the language model
makes of the first view and of a moment's queries, a teacher's features of depth or of video at that moment.

The teachers are no part of this: their features come with the batch, and a head that is not in model.teachers, whose
features do not come, costs nothing.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from world_model.families.lingbot_vla.layers import project
from world_model.families.lingbot_vla.spec import LingBotVLASpec

COSINE_WEIGHT = 0.2  # weight of the angle in the error of video features
EPS = 1e-5  # epsilon of the heads' norms


class Head(nnx.Module):
    """A perceiver of one layer (arXiv 2204.14198, section 3.1.1): the seeds look at the context and at themselves."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        dim, self.heads = spec.dim, spec.teacher_heads
        inner, norm = self.heads * spec.teacher_head_width, functools.partial(
            nnx.LayerNorm, epsilon=EPS, use_fast_variance=False, rngs=rngs)
        self.latents, self.context = project(dim, dim, rngs), project(dim, dim, rngs)
        self.latents_norm, self.context_norm = norm(dim), norm(dim)
        self.q, self.kv = project(dim, inner, rngs, False), project(dim, 2 * inner, rngs, False)
        self.o = project(inner, dim, rngs, False)
        self.mlp_norm, self.fc1, self.fc2 = norm(dim), project(dim, dim, rngs, False), project(dim, dim, rngs, False)
        self.features, self.features_norm = project(dim, spec.teacher_width, rngs), norm(spec.teacher_width)

    def __call__(self, seeds, context):
        """seeds [S, D], context [B, n, D] -> features [B, S, width]."""
        x = jnp.broadcast_to(self.latents(seeds), (len(context), *seeds.shape))
        h = self.latents_norm(x)
        context = jnp.concatenate([self.context_norm(self.context(context)), h], axis=1)
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1)
                   for a in (self.q(h), *jnp.split(self.kv(context), 2, axis=-1)))
        x = x + self.o(jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], -1))
        x = x + self.fc2(jax.nn.gelu(self.fc1(self.mlp_norm(x)), approximate=False))
        return self.features_norm(self.features(x))


def head_error(name: str, found, target):
    """float32 [B]: how far a head's features [B, S, width] are from its teacher's."""
    found, target = found.astype(jnp.float32), target.astype(jnp.float32)
    if name.endswith("depth"):
        return optax.losses.huber_loss(found, target).mean(axis=(1, 2))
    square, angle = video_errors(found, target)
    return square + COSINE_WEIGHT * angle


def video_errors(found, target):
    """(mean square, mean of 1 - cosine), float32 [B] each, of features [B, S, width]."""
    return (jnp.square(found - target).mean(axis=(1, 2)),
            1 - optax.losses.cosine_similarity(found, target, epsilon=1e-8).mean(axis=1))
