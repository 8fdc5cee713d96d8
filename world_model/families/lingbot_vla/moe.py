"""A feed-forward layer that is a mixture of experts, chosen by a sigmoid router without loss of tokens.

score = sigmoid(W x); the k experts with the highest score + bias are chosen; they weigh score / sum of the chosen x
scale, without the bias (arXiv 2412.19437, section 2.1.2). Tokens are sorted by expert, and each expert multiplies a run
of rows (jax.lax.ragged_dot): as much work as is chosen, and no capacity beyond which tokens are dropped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from world_model.families.lingbot_vla.spec import LingBotVLASpec

expert_init = nnx.initializers.normal(0.02)


class Routing(NamedTuple):
    """What a router did, with its losses of each sample."""

    logits: jax.Array  # float32 [B, L, E]
    chosen: jax.Array  # int32 [B, L, k]
    balance: jax.Array  # float32 [B], sum over experts of f P: 1 where all are used alike
    z: jax.Array  # float32 [B], mean square of the logits' log-sum-exp


class MixtureOfExperts(nnx.Module):
    """Routed experts, and one shared by all tokens."""

    def __init__(self, spec: LingBotVLASpec, make_shared, rngs: nnx.Rngs):
        self.count, self.top, self.scale = spec.experts, spec.experts_per_token, spec.routed_scale
        dim, ffn = spec.expert_dim, spec.routed_ffn_dim
        self.router = nnx.Param(expert_init(rngs.params(), (dim, self.count)))
        self.router_bias = nnx.Param(jnp.zeros(self.count))  # it moves the choice alone; no gradient reaches it
        self.experts_gate, self.experts_fc1 = (
            nnx.Param(expert_init(rngs.params(), (self.count, dim, ffn))) for _ in range(2))
        self.experts_fc2 = nnx.Param(expert_init(rngs.params(), (self.count, ffn, dim)))
        self.shared = make_shared(rngs=rngs)

    def __call__(self, x):
        """[B, L, D] -> ([B, L, D], Routing)."""
        logits = x.astype(jnp.float32) @ self.router[...].astype(jnp.float32)
        scores = jax.nn.sigmoid(logits)
        chosen, weights = self.choose(scores)
        routed = self.experts(x.reshape(-1, x.shape[-1]), chosen.reshape(-1, self.top),
                              weights.reshape(-1, self.top).astype(x.dtype)).reshape(x.shape)
        return routed + self.shared(x), Routing(logits, chosen, self.balance(logits, scores), z_loss(logits))

    def choose(self, scores):
        """float32 [B, L, E] -> (indices of the chosen, their weights) [B, L, k] each."""
        bias = jax.lax.stop_gradient(self.router_bias[...].astype(jnp.float32))
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(scores) + bias, self.top)
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        return chosen, weights / weights.sum(axis=-1, keepdims=True) * self.scale

    def experts(self, x, chosen, weights):
        """x [n, D], chosen and weights [n, k] -> [n, D]."""
        order = jnp.argsort(chosen.reshape(-1))  # rows of (token, choice), expert after expert
        rows, sizes = x[order // self.top], jnp.bincount(chosen.reshape(-1), length=self.count)
        gate, hidden = (jax.lax.ragged_dot(rows, kernel[...], sizes)
                        for kernel in (self.experts_gate, self.experts_fc1))
        out = jax.lax.ragged_dot(jax.nn.silu(gate) * hidden, self.experts_fc2[...], sizes)
        out = out * weights.reshape(-1)[order][:, None]
        return jnp.zeros_like(x).at[order // self.top].add(out)

    def balance(self, logits, scores):
        """float32 [B]: sums each expert's share of tokens (whose top k logits hold it) times its share of scores."""
        _, highest = jax.lax.top_k(jax.lax.stop_gradient(logits), self.top)
        share = jax.nn.one_hot(highest, self.count).sum(axis=-2).mean(axis=1) * self.count / self.top
        return (share * (scores / scores.sum(axis=-1, keepdims=True)).mean(axis=1)).sum(axis=-1)


def z_loss(logits):
    """float32 [B]: mean over tokens of logsumexp(logits)^2 (arXiv 2202.08906, eq. 5)."""
    return jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean(axis=-1)
