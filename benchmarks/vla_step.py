"""Speed of LingBot-VLA's forward and backward, ours beside the published package's; prints one JSON line.

    python -m benchmarks.vla_step --python=DIR/bin/python [--size=tiny|middle] [--repeats=20]

DIR is the package's own environment (benchmarks/check_lingbotvla.py says how it is made). Its step runs there, in a
process of its own, in turn with ours; both are float32 on the same machine, the loss is that of training over all
steps, every parameter that the loss reads gets a gradient, and there is no optimizer.

minimum_gflop: matrix products that the loss depends on (world_model/analysis/flops.py), three times the forward's.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

BATCH, VIEWS, WORDS, GRID = 4, 3, 12, 8
NOT_TIMED = 3  # rounds that compile and warm up
VISION = dict(num_heads=4, patch_size=4, spatial_patch_size=4, window_size=16)
SIZES = {  # (language, vision, expert)
    "tiny": (dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2),
             dict(depth=2, hidden_size=32, intermediate_size=80, fullatt_block_indexes=[1]),
             dict(hidden_size=32, intermediate_size=96)),
    "middle": (dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8),
               dict(depth=4, hidden_size=256, intermediate_size=688, fullatt_block_indexes=[3]),
               dict(hidden_size=256, intermediate_size=688))}


def sizes(name: str) -> tuple[dict, dict]:
    """(language model with its vision tower, action expert), as the package's configs call them."""
    language, vision, expert = SIZES[name]
    heads = dict(num_attention_heads=8, num_key_value_heads=2, vocab_size=256)
    width = language["hidden_size"] // 8
    rotary = {"type": "default", "rope_type": "default", "mrope_section": [width // 8, width // 8, width // 4]}
    language = language | heads | dict(
        rope_theta=1e6, tie_word_embeddings=True, rope_scaling=rotary,
        vision_config=VISION | vision | {"out_hidden_size": language["hidden_size"]})
    return language, expert | heads | {"head_dim": width, "num_hidden_layers": language["num_hidden_layers"]}


def ours(name: str):
    """(a step, the GFLOP that its loss depends on)."""
    import jax
    import numpy as np

    from benchmarks.check_lingbotvla import POLICY
    from world_model.families import Model, get_family
    from world_model.families.lingbot_vla.inputs import Example
    from world_model.families.lingbot_vla.loss import LingBotVLALoss
    from world_model.families.lingbot_vla.parity.golden_sizes import spec_of

    language, expert = sizes(name)
    spec = spec_of({"vlm": language, "expert": expert, "policy": POLICY, "grid": GRID, "text_len": WORDS}, 0, False)
    model = Model(get_family("lingbot_vla"), spec)
    rng, rows = np.random.default_rng(0), np.arange(BATCH, dtype=np.uint32)

    def normal(*shape):
        return rng.normal(size=(BATCH, *shape)).astype(np.float32)

    example = Example(normal(VIEWS, GRID * GRID, 6 * spec.vision_patch**2), np.ones((BATCH, VIEWS), bool),
                      rng.integers(0, spec.vocab_size, (BATCH, WORDS), np.int32), np.full(BATCH, WORDS, np.int32),
                      normal(spec.state_dim), actions := normal(spec.layout.actions_per_block, spec.action_dim),
                      np.ones(actions.shape, bool), rows)
    loss = LingBotVLALoss(model.module, error="squared")
    counts = loss.count({"action_mask": example.action_mask, "view_mask": example.view_mask})
    step = jax.jit(jax.value_and_grad(lambda params, key: loss(params, example, key, counts)[0]))
    params, key = model.init_params(jax.random.key(0)), jax.random.key(1)
    return lambda: jax.block_until_ready(step(params, key)), BATCH * sum(model.training_flops.values()) / 1e9


def published(name: str):
    """A step of the published class, in the environment that has it."""
    import torch

    from benchmarks.check_lingbotvla import POLICY, build

    language, expert = sizes(name)
    policy, rng = build(language, expert).train(), torch.Generator().manual_seed(0)
    dims, steps = POLICY["max_action_dim"], POLICY["chunk_size"]
    values = 6 * VISION["patch_size"] ** 2
    batch = (torch.randn(BATCH, VIEWS, GRID * GRID, values, generator=rng), torch.ones(BATCH, VIEWS, dtype=torch.bool),
             torch.randn(BATCH, dims, generator=rng), torch.randint(0, 256, (BATCH, WORDS), generator=rng),
             torch.ones(BATCH, WORDS, dtype=torch.bool), torch.randn(BATCH, steps, dims, generator=rng))

    def step():
        policy.zero_grad(set_to_none=True)
        policy(*batch)[0].backward()
    return step


class Elsewhere:
    """Steps of the published package in a process of its own: a line asks for one, its seconds come back."""

    def __init__(self, python: str, name: str):
        self.process = subprocess.Popen([python, "-m", "benchmarks.vla_step", f"--size={name}", "--worker"], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self) -> float:
        """Seconds of a step."""
        print(file=self.process.stdin, flush=True)
        while line := self.process.stdout.readline():  # the package prints lines of its own
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit("the published package's process has ended; its own words are above")


def timed(step) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of the published package's environment")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        step = published(given.size)
        for _ in sys.stdin:
            print("seconds", timed(step), flush=True)
        return
    step, gflop = ours(given.size)
    elsewhere = Elsewhere(given.python, given.size) if given.python else None
    rounds = [(timed(step), elsewhere() if elsewhere else None) for _ in range(given.repeats + NOT_TIMED)][NOT_TIMED:]
    mine, theirs = (list(side) for side in zip(*rounds, strict=True))
    found = {"size": given.size, "batch": BATCH, "median_seconds": median(mine), "best_seconds": min(mine),
             "minimum_gflop": gflop, "gflop_per_second": gflop / median(mine)}
    if elsewhere:
        found |= {"published_median_seconds": median(theirs), "published_best_seconds": min(theirs),
                  "times_as_fast": median(theirs) / median(mine)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
