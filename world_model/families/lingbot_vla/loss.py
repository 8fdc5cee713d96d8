"""Flow matching of a chunk of actions, one time per sample (arXiv 2601.18692, section 4.2; time counts as in the
released code, 1 being noise), with the routers' losses and rule where the expert has a mixture of experts, and the
errors of teachers' heads."""

import dataclasses

import jax
import jax.numpy as jnp

from world_model.diffusion import flow_matching
from world_model.families.base.loss import LEAST_SIGMA, ActionLoss, by_level, normal
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.moe import Routing
from world_model.families.lingbot_vla.teachers import head_error
from world_model.functional import bind

ALPHA = 1.5  # of Beta(alpha, 1)
BIAS = "expert_blocks.mlp.router_bias"
LOAD = "router_load"  # a metric for `after_step` alone
ERRORS = {"l1": jnp.abs, "squared": jnp.square}


def pseudo_beta(u, v):
    """u^(1/alpha) / (u^(1/alpha) + v): Johnk's way to Beta(alpha, 1) without its rejections, as released. Its mean is
    0.558 where the distribution's is 0.6."""
    u = u ** (1 / ALPHA)
    return u / (u + v)


TIMES = {"pseudo_beta": pseudo_beta, "beta": lambda u, v: u ** (1 / ALPHA), "uniform": lambda u, v: u}


@dataclasses.dataclass(frozen=True)
class LingBotVLALoss(ActionLoss):
    """Plain values from the config's `noise` and `loss` sections."""

    times: str = "pseudo_beta"
    error: str = "l1"
    past_end: str = "masked"
    balance_weight: float = 1e-3
    z_weight: float = 1e-4
    bias_speed: float = 0.0
    bias_centred: bool = False
    teacher_weight: float = 0.004

    def __post_init__(self):
        for key, value, known in (("noise.times", self.times, TIMES), ("loss.error", self.error, ERRORS),
                                  ("loss.past_end", self.past_end, ("masked", "trained"))):
            if value not in known:
                raise ValueError(f"{key} = {value!r}: expected {' or '.join(known)}")

    def count(self, batch: dict) -> dict:
        """See `Loss`."""
        mask = self.trained_on(batch["action_mask"])
        taught = {"taught": jnp.maximum(batch["view_mask"][:, 0].sum() * 1.0, 1)} if self.model.spec.teachers else {}
        return {"actions": jnp.maximum(mask.sum() * 1.0, 1), "samples": len(mask) * 1.0} | taught

    def trained_on(self, action_mask):
        """bool [B, N, A]: values that count."""
        if self.past_end == "masked":
            return action_mask
        return jnp.broadcast_to(action_mask.any(axis=1, keepdims=True), action_mask.shape)

    def sample(self, keys, example: Example, key: jax.Array):
        """See `Loss`: (time [B], noise [B, N, A])."""
        u, v = (jax.vmap(jax.random.uniform)(keys(use)) for use in (0, 1))
        time = LEAST_SIGMA + (1 - LEAST_SIGMA) * TIMES[self.times](1 - u, 1 - v)
        return time, normal(keys(2), example.actions.shape[1:])

    def predict(self, params: dict, example: Example, sampled):
        """See `Loss`; beside the velocity, what the teachers' heads say, and the routing."""
        (time, noise), model = sampled, bind(self.model, params)
        prefix = model.encode_prefix(example.patches, example.view_mask, example.text_ids, example.text_length,
                                     with_outputs=bool(model.spec.teachers))
        noisy = flow_matching.add_noise(example.actions, noise, time)
        velocity, routing = model.velocity(prefix, example.state, noisy, time)
        taught = model.queries.features(prefix.outputs) if model.spec.teachers else {}
        return {"action": velocity}, (taught, routing)

    def loss_of(self, predicted, targets: dict, example: Example, sampled, counts: dict):
        """See `Loss`."""
        (velocities, (taught, routing)), time = predicted, sampled[0]
        error = velocities["action"].astype(jnp.float32) - targets["action"]
        mask = self.trained_on(example.action_mask)
        loss = jnp.where(mask, ERRORS[self.error](error), 0).sum() / counts["actions"]
        metrics = {"action_loss": loss} | by_level("action", jnp.square(error), mask, time[:, None, None])
        for extra, more in (self.teacher_loss(taught, example, counts), self.routing_loss(routing, counts)):
            loss, metrics = loss + extra, metrics | more
        return loss, metrics

    def teacher_loss(self, found: dict, example: Example, counts: dict):
        """(weighted errors of teachers' heads over the samples that have a first view, metrics)."""
        metrics = {f"teacher_{name}": jnp.where(example.view_mask[:, 0], head_error(name, x, example.features[name]), 0
                                                ).sum() / counts["taught"] for name, x in found.items()}
        return self.teacher_weight * sum(metrics.values()), metrics

    def routing_loss(self, routing: Routing | None, counts: dict):
        """(weighted losses of the routers, means over layers; metrics, with the load [layers, E] of each expert)."""
        if routing is None:
            return 0, {}
        balance, z = (x.mean(axis=0).sum() / counts["samples"] for x in (routing.balance, routing.z))
        load = jax.nn.one_hot(routing.chosen, self.model.spec.experts).sum(axis=(1, 2, 3))
        return (self.balance_weight * balance + self.z_weight * z,
                {"router_balance": balance, "router_z": z, LOAD: load})

    def after_step(self, params: dict, metrics: dict):
        """See `Loss`: the routers' biases follow their loads."""
        metrics = dict(metrics)
        load = metrics.pop(LOAD, None)
        if load is None:
            return params, metrics
        metrics["router_busiest"] = (load.max(axis=-1) / load.mean(axis=-1)).mean()  # 1: all experts work alike
        if self.bias_speed and BIAS in params:
            params = params | {BIAS: moved_bias(params[BIAS], load, self.bias_speed, self.bias_centred)}
        return params, metrics


def moved_bias(bias, load, speed: float, centred: bool):
    """Biases [..., E] of a router's choice after a step in which its experts had that load (arXiv 2408.15664): up by
    `speed` below the mean load, down above it. centred: less their mean."""
    bias = bias - speed * jnp.sign(load - load.mean(axis=-1, keepdims=True))
    return bias - bias.mean(axis=-1, keepdims=True) if centred else bias
