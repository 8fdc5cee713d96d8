"""Inputs: each camera's picture, the prompt's bytes, the state. There are no frozen encoders."""

import collections
import dataclasses

import jax
import numpy as np

from world_model.batch import batch_spec
from world_model.families.base.inputs import Fields, Inputs

Example = collections.namedtuple("Example", "views view_mask text_ids text_length state actions action_mask sample_index",
                                 defaults=(None,) * 4)


@dataclasses.dataclass(frozen=True)
class ToyInputs(Inputs):
    """The loss and the sampler take an Example: fields that world_model/batch.py describes. A policy's has no actions."""

    def batch_fields(self) -> Fields:
        spec = self.spec
        return batch_spec(spec.layout, action_dim=spec.action_dim, state_dim=spec.state_dim,
                          text_length=spec.text_length, views=spec.views)

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        found, room = np.frombuffer(prompt.encode(), np.uint8).astype(np.int32) + 1, self.spec.text_length
        if len(found) > room:
            raise ValueError(f"the prompt has {len(found)} bytes, model.text_length = {room} is what there is room for")
        return np.pad(found, (0, room - len(found))), len(found)

    def encode(self, frozen: dict, batch: dict) -> Example:
        return Example(*(batch[name] for name in Example._fields))

    def pictures(self, robot, views: dict[str, np.ndarray]):
        return robot.views({name: frames[-1:] for name, frames in views.items()})  # the newest

    def picture_shapes(self):
        return tuple(jax.ShapeDtypeStruct(*self.batch_fields()[name]) for name in ("views", "view_mask"))
