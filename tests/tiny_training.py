"""A small model, its data and its loss as an experiment (launch/setup/experiment.py); as a script it trains.

    python tests/tiny_training.py --workdir=DIR --steps=20 --every=5 [--slow_save=1]

The model is a stack of attention and MLP blocks under a scan that denoises white noise, so that every logical
axis of world_model/parallel/sharding.py is used.
"""

import argparse
import asyncio
import dataclasses
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from launch.setup import experiment, fit, initial
from world_model.families.base import loss
from world_model.parallel import sharding
from world_model.parallel.remat import remat

LAYERS, DIM, FFN, TOKENS, CHANNELS, HEADS = 2, 32, 64, 8, 8, 4


class Model:
    """Attention and MLP blocks over TOKENS tokens."""

    flops_per_sample = 3.0 * 2 * TOKENS * LAYERS * (4 * DIM * DIM + 2 * DIM * FFN)

    def __init__(self, width: int = DIM, policy: str = "none"):
        self.width, self.policy = width, policy

    def shapes(self) -> dict:
        d, n = self.width, LAYERS
        return {"embed.kernel": (CHANNELS, d), "embed.bias": (d,), "head.kernel": (d, CHANNELS),
                "blocks.q.kernel": (n, d, d), "blocks.k.kernel": (n, d, d), "blocks.v.kernel": (n, d, d),
                "blocks.o.kernel": (n, d, d), "blocks.norm.scale": (n, d),
                "blocks.fc1.kernel": (n, d, FFN), "blocks.fc1.bias": (n, FFN),
                "blocks.fc2.kernel": (n, FFN, d)}

    def axes(self) -> dict:
        up, down = ("layers", "embed", "heads"), ("layers", "heads", "embed")
        return {"embed.kernel": (None, "embed"), "embed.bias": ("embed",), "head.kernel": ("embed", None),
                "blocks.q.kernel": up, "blocks.k.kernel": up, "blocks.v.kernel": up, "blocks.o.kernel": down,
                "blocks.norm.scale": ("layers", "embed"), "blocks.fc1.kernel": ("layers", "embed", "mlp"),
                "blocks.fc1.bias": ("layers", "mlp"), "blocks.fc2.kernel": ("layers", "mlp", "embed")}

    def init_params(self, key) -> dict:
        shapes = self.shapes()
        sizes = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        drawn = jnp.split(jax.random.uniform(key, (sizes[-1],), minval=-0.2, maxval=0.2), sizes[:-1])
        return {name: values.reshape(shape) + name.endswith("scale")
                for values, (name, shape) in zip(drawn, shapes.items())}

    def cast(self, params: dict, dtype: str) -> dict:
        return {name: p.astype(dtype) for name, p in params.items()}

    def __call__(self, params: dict, x: jax.Array) -> jax.Array:
        axes, shapes = self.axes(), self.shapes()
        def whole(name, p):
            return p if name.startswith("blocks.") else sharding.gather_weight(p, axes[name], shapes[name])
        params = {name: whole(name, p) for name, p in params.items()}
        x = sharding.constrain(x @ params["embed.kernel"] + params["embed.bias"], "batch", "tokens", None)
        blocks = {name: p for name, p in params.items() if name.startswith("blocks.")}

        def step(x, blocks):
            return block(x, {name[7:]: sharding.gather_weight(p, axes[name][1:], shapes[name][1:])
                             for name, p in blocks.items()})

        x, _ = jax.lax.scan(remat(step, self.policy), x, blocks)
        return x @ params["head.kernel"]


def block(x: jax.Array, p: dict):
    h = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * p["norm.scale"]
    q, k, v = ((h @ p[f"{n}.kernel"]).reshape(*h.shape[:2], HEADS, -1) for n in "qkv")
    q = sharding.constrain(q, "batch", "tokens", "heads", None)
    seen = jax.nn.softmax(jnp.einsum("blhd,bmhd->bhlm", q, k) / q.shape[-1] ** 0.5)
    x = x + jnp.einsum("bhlm,bmhd->blhd", seen, v).reshape(h.shape) @ p["o.kernel"]
    x = x + jax.nn.gelu(x @ p["fc1.kernel"] + p["fc1.bias"]) @ p["fc2.kernel"]
    return sharding.constrain(x, "batch", "tokens", None), None


@dataclasses.dataclass(frozen=True)
class Loss(loss.Loss):
    """Denoising loss, normalised by the number of valid tokens of the whole batch. The scale is a frozen array, or 1."""

    model: Model

    def count(self, batch):
        return {"tokens": jnp.sum(batch["mask"])}

    def __call__(self, params, batch, key, counts, frozen=None):
        scale = frozen["codec"]["scale"][0] if frozen else 1.0
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (TOKENS, CHANNELS)))
        noise = draw(batch["sample_index"])
        out = self.model(params, (batch["x"] + noise).astype(params["embed.kernel"].dtype))
        error = jnp.square(out.astype(jnp.float32) - scale * batch["x"]).mean(-1) * batch["mask"]
        low = batch["mask"] * (noise.mean(-1) < 0.5)
        metrics = {"video_loss": jnp.sum(error) / counts["tokens"], "action_loss": jnp.zeros(()),
                   "low_noise/sum": jnp.sum(error * low), "low_noise/count": jnp.sum(low)}
        return metrics["video_loss"], metrics


def make_batch(step: int, rows: range, seed: int = 0) -> dict:
    """Rows `rows` of global batch `step`: a function of (seed, step, row), as the loader's contract asks."""
    draws = [np.random.default_rng((seed, step, row)) for row in rows]
    ids = {"dataset_id": 0, "episode_index": step, "start": 0}
    length = np.array([r.integers(3, TOKENS + 1) for r in draws])
    return {"x": np.stack([r.normal(size=(TOKENS, CHANNELS)) for r in draws]).astype(np.float32),
            "mask": (np.arange(TOKENS) < length[:, None]).astype(np.float32),
            "sample_index": np.array([step * 1000 + row for row in rows], np.uint32),
            **{name: np.full(len(rows), value, np.int32) for name, value in ids.items()}}


class Loader:
    """Batches by step; each is written to `log`, if there is one. The batch of step `nan_at` is spoilt."""

    def __init__(self, batch_size: int, start_step: int, index: int, count: int, log: Path | None, nan_at: int = -1,
                 seed: int = 0):
        self.step, self.log, self.nan_at, self.seed = start_step, log, nan_at, seed
        self.rows = range(index * batch_size // count, (index + 1) * batch_size // count)

    def __next__(self) -> dict:
        batch = make_batch(self.step, self.rows, self.seed)
        if self.step == self.nan_at:
            batch["x"][0, 0, 0] = np.nan
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{self.step} {batch['sample_index'][0]} {batch['x'].sum():.9e}\n")
        self.step += 1
        return batch

    def state(self) -> dict:
        return {"step": self.step}

    def check_resume(self, saved: dict) -> None:
        if saved["step"] != self.step:
            raise ValueError(f"loader is at step {self.step}, the checkpoint's at {saved['step']}")

    def close(self) -> None:
        pass


class Data:
    def __init__(self, config, log, statistics=None, nan_at: int = -1):
        self.config, self.log, self.nan_at = config, log, nan_at
        self.statistics = statistics or {"toy": {"q01": [0.0, 1.0], "q99": [2.0, 3.0]}}
        self.statistics_hash = f"{hash(str(self.statistics)) if statistics else 'aa'}"

    def loader(self, start_step: int, process_index: int, process_count: int) -> Loader:
        size = self.config.train.global_batch_size
        return Loader(size, start_step, process_index, process_count, self.log, self.nan_at, self.config.seed)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment(experiment.Experiment):
    """The tiny model in place of a family's. The optimizer is made as everybody's."""

    width: int = DIM
    statistics: dict | None = None
    nan_at: int = -1
    log: Path | None = None
    scale: float = 0.5  # of the frozen "codec" that this run would fit

    @functools.cached_property
    def model(self):
        return Model(self.width, self.config.train.remat)

    @functools.cached_property
    def loss(self):
        return Loss(self.model)

    def loss_fn(self, params, batch, key, counts, frozen=None):
        return self.loss(params, batch, key, counts, frozen)

    def data(self, *, statistics=None):
        return Data(self.config, self.log, statistics or self.statistics, self.nan_at)

    def fit_encoders(self, data):
        return initial.kept_encoders(self, {"codec": lambda: {"scale": np.float32([self.scale])}})

    def training_arrays(self, kept):
        return kept

    def fitted(self, devices=None):
        def made(config):
            return dataclasses.replace(self, config=config)

        return dataclasses.replace(self, config=fit.fit(self.config, made, devices))


def config(steps: int = 12, every: int = 4, **mesh):
    c = base.get_config()
    c.model.family, c.model.dim, c.model.num_heads = "tiny", DIM, HEADS
    c.train.steps, c.train.global_batch_size, c.train.log_every = steps, 8, 2
    c.train.compute_dtype = "float32"
    c.optimizer.learning_rate, c.optimizer.warmup_fraction, c.optimizer.ema_decay = 1e-2, 0.1, 0.9
    c.checkpoint.every, c.checkpoint.keep_last = every, 2
    c.mesh.update(mesh)
    return c


def slow_commits(seconds: float) -> None:
    """Orbax waits before it gives a written checkpoint its final name, so that a test can kill it in
    between."""
    from orbax.checkpoint._src.path import atomicity
    commit = atomicity.AtomicRenameTemporaryPath.finalize

    async def slow(self):
        await asyncio.sleep(seconds)
        await commit(self)

    atomicity.AtomicRenameTemporaryPath.finalize = slow


if __name__ == "__main__":
    from launch import train

    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--slow", type=float, default=0.0, help="seconds added to every batch")
    parser.add_argument("--slow_save", type=float, default=0.0, help="seconds before a save's commit")
    parser.add_argument("--connect_seconds", type=int, default=200)
    parser.add_argument("--heartbeat_seconds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.slow:
        plain = Loader.__next__
        Loader.__next__ = lambda self: (time.sleep(args.slow), plain(self))[1]
    if args.slow_save:
        slow_commits(args.slow_save)
    wanted = config(args.steps, args.every)
    wanted.optimizer.rate_factors = ((r"^embed\.", 0.1), (r"fc[12]", 2.0))
    wanted.hosts.update(connect_seconds=args.connect_seconds, heartbeat_seconds=args.heartbeat_seconds)
    wanted.seed, wanted.train.log_every = args.seed, 1  # every loss is on record, wherever a run stops
    sys.exit(train.run(Experiment(wanted, log=Path(args.workdir) / "batches.txt"), args.workdir))
