"""Query tokens of version 2: learned, behind the text, for the present and for the future; teachers of depth and of
video shape what they say (arXiv 2607.06403)."""

import jax
import jax.numpy as jnp
from flax import nnx

from world_model.families.lingbot_vla.layers import dense_init, project
from world_model.families.lingbot_vla.spec import LingBotVLASpec

WHEN, KINDS = ("current", "future"), ("depth", "video")


class Queries(nnx.Module):
    """Seeds of each kind and moment, averaged in groups, and one projection of both kinds for each moment."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        self.count = spec.query_tokens
        for when in WHEN:
            for kind in KINDS:
                seeds = dense_init(rngs.params(), (spec.query_seeds, spec.dim))
                setattr(self, f"{when}_{kind}_seeds", nnx.Param(seeds))
            setattr(self, f"{when}_projection", project(len(KINDS) * spec.dim, spec.dim, rngs))

    def seeds(self, when: str, kind: str) -> jax.Array:
        """[seeds, D]."""
        return getattr(self, f"{when}_{kind}_seeds")[...]

    def __call__(self):
        """[2 Q, D]: those of the present, then those of the future."""
        def tokens(when: str):
            means = [self.seeds(when, kind).reshape(self.count, -1, self.seeds(when, kind).shape[-1]).mean(axis=1)
                     for kind in KINDS]
            return getattr(self, f"{when}_projection")(jnp.concatenate(means, axis=-1))

        return jnp.concatenate([tokens(when) for when in WHEN])
