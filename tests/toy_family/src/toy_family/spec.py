"""Sizes: the config's keys, what follows from them, and the work that they make."""

import dataclasses

from world_model.analysis.flops import Parts, Work, frozen, stack, trained
from world_model.families.base.spec import Spec

CONFIG = {
    "model": {"dim": 1024, "ffn_dim": 4096, "num_heads": 16, "num_layers": 12,  # of each of the two stacks
              "kv_heads": 4,  # heads of keys and values in the stack that looks
              "views": 3,  # V, cameras; a robot may have fewer
              "patch": 16, "text_length": 64,  # rows and columns of a patch, pixels; bytes of a prompt
              "action_dim": 32, "state_dim": 64},  # shared slots
    "layout": {"frames": 1, "height": 224, "width": 224, "frames_per_block": 1, "actions_per_block": 16,
               "states_per_block": 1},
    "noise": {"shift": 1.0},  # sigma = shift s / (1 + (shift - 1) s)
    "evaluate": {"solver_steps": 10},  # denoising steps of a chunk
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySpec(Spec):
    """Sizes of the toy; see CONFIG."""

    kv_heads: int
    views: int
    patch: int
    text_length: int

    @property
    def seen_tokens(self) -> int:
        return self.frame_tokens + self.text_length + 1

    @property
    def training_tokens(self) -> int:
        return self.seen_tokens + self.layout.num_actions

    @property
    def frame_tokens(self) -> int:
        return self.views * (self.layout.height // self.patch) * (self.layout.width // self.patch)


def forward_flops(spec: ToySpec) -> Parts:
    """The products of one sample, by part."""
    d, seen, n, layers = spec.dim, spec.seen_tokens, spec.layout.num_actions, spec.num_layers
    shared = d * spec.kv_heads // spec.num_heads
    return stack(Work(n, n, n * n, n * n, seen), d, spec.ffn_dim, layers) | {
        "looking": trained((2 * layers * seen, d, d + shared), (2 * layers * seen, seen, d),
                           (2 * layers * seen, d, spec.ffn_dim)),
        "embedders": frozen((spec.frame_tokens, 3 * spec.patch**2, d), (1, spec.state_dim, d),
                            (n, spec.action_dim, d), (1, d, d)) + trained((1, d, 7 * d)),
        "head": trained((n, d, spec.action_dim))}
