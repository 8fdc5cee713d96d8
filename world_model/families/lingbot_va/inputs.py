"""LingBot-VA's inputs: actions grouped by latent frame, and the empty prompt where training drops prompts."""

import dataclasses

import jax.numpy as jnp

from world_model.families.lingbot_va.layout import LingBotVASpec
from world_model.families.wan.inputs import Example, VideoInputs


@dataclasses.dataclass(frozen=True)
class LingBotVAInputs(VideoInputs):
    """drops_text: whether examples hold the empty prompt's features, for `noise.text_dropout`."""

    spec: LingBotVASpec
    drops_text: bool = False

    def needs_when_stored(self) -> tuple[str, ...]:
        return ("text",) if self.drops_text else ()

    def encode(self, frozen: dict, batch: dict) -> Example:
        """See `Inputs`. Actions gain group 0 in front: zeros, masked, which stand for the actions before the first
        frame."""
        example, n = super().encode(frozen, batch), self.spec.actions_per_frame

        def with_group_0(x):
            return jnp.pad(x, ((0, 0), (n, 0), (0, 0)))

        robot = example.action_valid.any(axis=1, keepdims=True)
        return example._replace(
            actions=with_group_0(example.actions), action_mask=with_group_0(example.action_mask),
            action_valid=jnp.concatenate([jnp.repeat(robot, n, axis=1), example.action_valid], axis=1),
            empty_text=self.fixed_text(frozen, "", len(example.text)) if self.drops_text else None)


def make_inputs(spec: LingBotVASpec, noise: dict, **encoders) -> LingBotVAInputs:
    """Inputs for a config's `noise` section and encoders."""
    return LingBotVAInputs(spec, **encoders, drops_text=noise["text_dropout"] > 0)
