"""Query tokens of version 2: learned, behind the text, for the present and for the future; frozen teachers of depth and
of video shape what they say (arXiv 2607.06403)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from world_model.families.lingbot_vla.layers import dense_init, project
from world_model.families.lingbot_vla.spec import HEADS, LingBotVLASpec
from world_model.families.lingbot_vla.teachers import Head

WHEN, KINDS = ("current", "future"), ("depth", "video")


class Queries(nnx.Module):
    """Seeds and a head of each kind and moment, and for each moment a projection of both kinds' seeds, averaged in
    groups."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        self.count, self.teachers = spec.query_tokens, spec.teachers
        for name in HEADS:
            setattr(self, f"{name}_seeds", nnx.Param(dense_init(rngs.params(), (spec.query_seeds, spec.dim))))
            setattr(self, f"{name}_head", Head(spec, rngs))
        for when in WHEN:
            setattr(self, f"{when}_projection", project(len(KINDS) * spec.dim, spec.dim, rngs))

    def seeds(self, name: str) -> jax.Array:
        """[seeds, D] of one of HEADS."""
        return getattr(self, f"{name}_seeds")[...]

    def __call__(self):
        """[2 Q, D]: those of the present, then those of the future."""
        def tokens(when: str):
            seeds = (self.seeds(f"{when}_{kind}") for kind in KINDS)
            means = [x.reshape(self.count, -1, x.shape[-1]).mean(axis=1) for x in seeds]
            return getattr(self, f"{when}_projection")(jnp.concatenate(means, axis=-1))

        return jnp.concatenate([tokens(when) for when in WHEN])

    def features(self, outputs) -> dict[str, jax.Array]:
        """What the heads of model.teachers say, [B, seeds, width] by name, of what the language model makes of the
        tokens in `read_tokens`, [B, view tokens + 2 Q, D]. Those of the future do not shape how pictures are seen."""
        pictures, queries = outputs[:, :-2 * self.count], outputs[:, -2 * self.count:]
        moments = {"current": (pictures, queries[:, :self.count]),
                   "future": (jax.lax.stop_gradient(pictures), queries[:, self.count:])}
        return {name: getattr(self, f"{name}_head")(
            self.seeds(name), jnp.concatenate(moments[name.split("_")[0]], axis=1)) for name in self.teachers}


def read_tokens(spec: LingBotVLASpec) -> np.ndarray:
    """int [view tokens + 2 Q]: where in the prefix the first view's pictures and the queries stand."""
    first = len(spec.view_markers) // 2
    return np.concatenate([np.arange(first, first + spec.view_tokens),
                           np.arange(spec.prefix_tokens - spec.queries, spec.prefix_tokens)])
