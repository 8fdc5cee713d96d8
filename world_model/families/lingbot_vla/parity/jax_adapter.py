"""LingBot-VLA in JAX as it is compared: numpy in, numpy out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model import functional
from world_model.families.base.golden import ReferenceAdapter
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.loss import LingBotVLALoss
from world_model.families.lingbot_vla.model import LingBotVLA
from world_model.families.lingbot_vla.prefix import (
    prefix_mask,
    prefix_tokens,
    rotary_table,
    suffix_mask,
    suffix_positions,
)
from world_model.families.lingbot_vla.sampler import LingBotVLASampler
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.weights.names import TABLES
from world_model.functional import bind
from world_model.weights import names


class Language(NamedTuple):
    """The language model, layer by layer. A layer's projections are (q, k, v) before rotation, [B, Lp, heads, d]."""

    prefix: np.ndarray  # [B, Lp, D]
    taps: np.ndarray  # [taps, B, Lp, D]
    projections: list
    hidden: list  # x after each layer, and after what is added behind it
    output: np.ndarray  # after the norm
    mask: np.ndarray  # bool [B, Lp, Lp]
    positions: np.ndarray  # [axes, B, Lp]
    valid: np.ndarray  # bool [B, Lp]


class Expert(NamedTuple):
    """The action expert over a prefix, layer by layer."""

    embedded: np.ndarray  # [B, 1 + N, D]
    condition: np.ndarray  # [B, D]
    projections: list
    hidden: list
    mlp: list  # (in, out) of each layer's feed-forward part
    routing: list  # (Routing, weights [B, 1 + N, k]) of each layer, or None
    output: np.ndarray  # after the norm
    mask: np.ndarray  # bool [B, 1 + N, Lp + 1 + N]
    positions: np.ndarray  # [axes, B, 1 + N]
    velocity: np.ndarray  # [B, N, A]


class LingBotVLAAdapter(ReferenceAdapter):
    """The JAX model of `spec` with `params`."""

    module = LingBotVLA

    @classmethod
    def table(cls, spec: LingBotVLASpec) -> names.NameTable:
        return TABLES[spec.vision]

    def look(self, patches: np.ndarray, grid: tuple[int, int]):
        """(tokens [B, n / 4, D], taps [taps, B, n / 4, D]) of the vision tower; patches [B, n, values]."""
        def run(params, patches):
            model = bind(self.model, params)
            return model.vision(patches, model._layer_shapes("vision.blocks"), model.param_axes, grid)

        return jax.device_get(jax.jit(run)(self.params, patches))

    def language(self, example: Example) -> Language:
        """The whole prefix, with what nobody reads."""
        return jax.device_get(jax.jit(self._language)(self.params, example))

    def _language(self, params, example: Example) -> Language:
        model = bind(self.model, params)
        tokens = prefix_tokens(self.spec, example.view_mask, example.text_length)
        prefix, taps = model.embed_prefix(example.patches, example.text_ids, example.view_mask)
        angles, mask = rotary_table(self.spec, tokens.positions), prefix_mask(self.spec, tokens.valid)
        x, found = prefix, []
        for i, layer in enumerate([*each_layer(model.language_blocks), model.language_final_block]):
            h = layer.norm1(x)
            x, _ = layer(x, angles, mask)
            x = x + taps[i] if i < len(taps) else x
            found.append((tuple(layer.self_attn.heads(part, h) for part in "qkv"), x))
        projections, hidden = map(list, zip(*found, strict=True))
        return Language(prefix, taps, projections, hidden, model.language_norm(x), mask, tokens.positions,
                        tokens.valid)

    def expert(self, example: Example, actions: np.ndarray, time: np.ndarray) -> Expert:
        """The expert at noisy actions [B, N, A] and their times [B], over the keys and values that sampling keeps."""
        return jax.device_get(jax.jit(self._expert)(self.params, example, actions, time))

    def _expert(self, params, example: Example, actions, time) -> Expert:
        model = bind(self.model, params)
        prefix = model.encode_prefix(example.patches, example.view_mask, example.text_ids, example.text_length)
        embedded, condition = model.embed_suffix(example.state, actions, time)
        positions = suffix_positions(prefix.tokens, embedded.shape[1])
        angles, mask = rotary_table(self.spec, positions), suffix_mask(self.spec, prefix.tokens.valid, actions.shape[1])
        x, found = embedded, []
        for i, layer in enumerate(each_layer(model.expert_blocks)):
            keys_values, h = (prefix.keys[i], prefix.values[i]), layer.norm1(x, condition)
            parts = tuple(layer.self_attn.heads(part, h) for part in "qkv")
            h = layer.attended(x, condition, angles, keys_values, mask)  # x halfway
            x, routing = layer(x, condition, angles, keys_values, mask)
            weights = routing and layer.mlp.choose(jax.nn.sigmoid(routing.logits))[1]
            found.append((parts, x, (layer.norm2(h, condition), x - h), routing and (routing, weights)))
        velocity, _ = model.velocity(prefix, example.state, actions, time)
        projections, hidden, mlp, routing = map(list, zip(*found, strict=True))
        return Expert(embedded, condition, projections, hidden, mlp, routing, model.expert_norm(x), mask, positions,
                      velocity)

    def train(self, example: Example, noise: np.ndarray, time: np.ndarray, **settings):
        """(loss, metrics, gradients under the reference's names) of one batch."""
        goal, sampled = LingBotVLALoss(self.model, **settings), (time, noise)
        counts = goal.count({"action_mask": example.action_mask, "view_mask": example.view_mask})

        def loss(params):
            return goal.loss_at(params, example, sampled, counts)

        (loss, metrics), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(self.params))
        published = dict(names.to_published(gradients, self.spec.head_dim, TABLES[self.spec.vision]))
        return loss, metrics, published

    def teach(self, example: Example) -> dict[str, np.ndarray]:
        """What the teachers' heads say, [B, seeds, width] by name."""
        def run(params, x: Example):
            model = bind(self.model, params)
            prefix = model.encode_prefix(x.patches, x.view_mask, x.text_ids, x.text_length, with_outputs=True)
            return model.queries.features(prefix.outputs)

        return jax.device_get(jax.jit(run)(self.params, example))

    def keys_values(self, example: Example) -> list[tuple[np.ndarray, np.ndarray]]:
        """[B, Lp, kv heads, d] each, of every layer, as sampling keeps them."""
        def run(params, x: Example):
            return bind(self.model, params).encode_prefix(x.patches, x.view_mask, x.text_ids, x.text_length)

        found = jax.device_get(jax.jit(run)(self.params, example))
        return list(zip(found.keys, found.values, strict=True))

    def velocity(self, example: Example, actions: np.ndarray, time: np.ndarray) -> np.ndarray:
        """[B, N, A] at noisy actions and their times [B]."""
        return self.expert(example, actions, time).velocity

    def sample(self, example: Example, noise: np.ndarray, steps: int) -> np.ndarray:
        """Actions [B, N, A] by cached sampling."""
        return np.asarray(LingBotVLASampler(self.model, steps).denoise(self.params, example, jnp.asarray(noise)))


def each_layer(stack) -> list:
    """The layers of a stack as modules of their own."""
    params = functional.parameters(stack)
    count = len(next(iter(params.values())))
    return [bind(stack, {name: p[i] for name, p in params.items()}) for i in range(count)]
