"""LingBot-VLA's inputs: each camera's newest picture as patches, the prompt's token ids, the state."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_dtypes import bfloat16

from world_model.batch import batch_spec
from world_model.encoders.token_ids import TokenIds
from world_model.families.base.inputs import Fields, Inputs
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.vision import make_patches


class Example(NamedTuple):
    """What the loss and the sampler take; a policy's has no actions."""

    patches: jax.Array  # float32 [B, V, n, values]
    view_mask: jax.Array  # bool [B, V]
    text_ids: jax.Array  # int32 [B, text_length]
    text_length: jax.Array  # int32 [B]
    state: jax.Array  # [B, state_dim]
    actions: jax.Array | None = None  # [B, N, action_dim]; past an episode's end its last action
    action_mask: jax.Array | None = None  # bool, True on real values
    sample_index: jax.Array | None = None  # uint32 [B], what every random draw is a function of
    features: dict[str, jax.Array] | None = None  # features of model.teachers, by name [B, seeds, width]


@dataclasses.dataclass(frozen=True)
class LingBotVLAInputs(Inputs):
    """The vision tower is trained, so that there is no frozen encoder and nothing to store."""

    spec: LingBotVLASpec
    tokens: TokenIds

    def batch_fields(self) -> Fields:
        spec = self.spec
        fields = batch_spec(spec.layout, action_dim=spec.action_dim, state_dim=spec.state_dim,
                            text_length=spec.text_length, views=spec.views)
        return fields | {field_of(name): ((spec.query_seeds, spec.teacher_width), bfloat16) for name in spec.teachers}

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        return self.tokens.tokenize(self.spec.prompt.replace("{}", prompt))

    def encode(self, frozen: dict, batch: dict) -> Example:
        return Example(make_patches(self.spec, batch["views"]), batch["view_mask"], batch["text_ids"],
                       batch["text_length"], batch["state"][:, 0],
                       hold_last_action(batch["actions"], batch["action_mask"]),
                       batch["action_mask"], batch["sample_index"],
                       {name: batch[field_of(name)] for name in self.spec.teachers})

    def conditions(self, frozen: dict, example: Example) -> Example:
        return example

    def pictures(self, robot, views: dict[str, np.ndarray]):
        """See `Inputs`: (views, which there are) of the newest moment."""
        return robot.views({name: frames[-1:] for name, frames in views.items()})

    def picture_shapes(self):
        return tuple(jax.ShapeDtypeStruct(*self.batch_fields()[name]) for name in ("views", "view_mask"))

    def start(self, frozen: dict, pictures, text_ids, text_length):
        return pictures, text_ids, text_length


def field_of(teacher: str) -> str:
    """The batch's field of a teacher's features."""
    return f"teacher_{teacher}"


def hold_last_action(actions, mask):
    """Actions [B, N, A] where each dimension keeps its last real value behind it; zeros where it has none."""
    steps = jnp.arange(actions.shape[1])[:, None]
    last = jax.lax.cummax(jnp.where(mask, steps, -1), axis=1)
    found = jnp.take_along_axis(jnp.where(mask, actions, 0), jnp.maximum(last, 0), axis=1)
    return jnp.where(last >= 0, found, 0)


def make_inputs(spec: LingBotVLASpec, noise: dict, tokens: TokenIds) -> LingBotVLAInputs:
    """Inputs for a config's sizes and tokenizer."""
    return LingBotVLAInputs(spec, tokens)
