"""Evaluates a model on held-out windows: its loss on each, what it rolls out, and how far off that is.

The weights lie where they lie, on one device or spread over a mesh; windows are spread over the mesh's rows. Arguments
of compiled functions are all arrays, so that one program serves every evaluation of a run.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.dataset import Dataset
from launch.reporting import baselines, scores
from launch.setup.experiment import Experiment
from world_model.analysis import image_metrics
from world_model.parallel import host_rows, sharding
from world_model.training.train_step import by_row

SHOWN = 6  # windows whose frames are kept for people to look at
NOISE_SAMPLES = 2  # noise samples per held-out window
USE_EVALUATION = 1000  # use of random keys, beside those of the families' losses


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """The evaluations of a model, each compiled once. `params` are in the dtype that is computed in."""

    experiment: Experiment
    mesh: Mesh | None = None  # None: everything on one device

    @functools.cached_property
    def sampler(self):
        """The family's, every branch of its guidance on all devices; see world_model/families/base/sampler.py."""
        spread = {"branch_devices": 1} if self.mesh and "branch_devices" in self.experiment.config.evaluate else {}
        return self.experiment.sampler(**spread)

    def batch_size(self) -> int:
        """evaluate.batch_size, rounded up to what the mesh's rows divide."""
        rows = 1 if self.mesh is None else int(np.prod([self.mesh.shape[axis] for axis in sharding.RULES["batch"]]))
        return -(-self.experiment.config.evaluate.batch_size // rows) * rows

    def encode(self, frozen: dict, batch: dict[str, np.ndarray]):
        """(small, example, conditions): the batch without what encoders read, and what they make of it, on devices."""
        placed = self.put(batch)
        stored_from = self.experiment.inputs.stored_from
        with self.on_mesh():
            return {name: x for name, x in placed.items() if name not in stored_from}, *self._encode(frozen, placed)

    def losses(self, params: dict, small: dict, example, sample: int) -> dict[str, np.ndarray]:
        """The loss's metrics of every window alone, [B], on a sample of noise: the batch size changes none."""
        with self.on_mesh():
            return self.fetch(self._losses(params, small, example, jax.random.fold_in(self._root, sample)))

    def roll_out(self, params: dict, frozen: dict, batch: dict[str, np.ndarray], example, conditions,
                 datasets: tuple[Dataset, ...], shown: int) -> dict[str, np.ndarray]:
        """Errors and predictions of a batch, with frames of the first `shown` windows; numpy, B leading.

        frozen: the encoders' arrays, of which the video codec's are read.
        datasets: those that batch["dataset_id"] numbers.
        """
        found = {}
        with self.on_mesh():
            keys = self._keys(self.put({"index": batch["sample_index"]})["index"])
            if self.experiment.family.imagines_video:
                imagined = self.sampler(params, conditions, keys)
                video = self.put({"video": batch["video"]})["video"]
                found = self.fetch(self._compare(frozen, video, example.latents, imagined.latents, shown))
                found |= {"frame_mask": batch["frame_mask"], "latent_mask": self.fetch(example.frame_valid)}
                reacting = self.sampler(params, conditions, keys, history=example.latents)
            else:
                reacting = self.sampler(params, conditions, keys)
            actions = self.fetch(reacting.actions)
        repeated, known = baselines.repeated_actions(batch, datasets, self.experiment.layout)
        return found | {
            "actions": batch["actions"], "action_mask": batch["action_mask"], "predicted_actions": actions,
            "repeated_known": known, "repeated_actions": repeated,
            "mean_actions": baselines.mean_actions(batch, datasets, self.experiment.layout)}

    def on_mesh(self):
        """The context in which arrays of the mesh are computed with."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A whole batch, the same on every host, spread over the mesh's rows."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        index, count = host_rows.host_share(self.mesh)
        return host_rows.put_batch({name: np.split(x, count)[index] for name, x in batch.items()}, self.mesh)

    def fetch(self, tree):
        """Arrays as numpy, whole on every host."""
        if self.mesh is not None:
            tree = jax.jit(lambda x: x, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(tree)
        return jax.device_get(tree)

    @property
    def _root(self) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.experiment.config.seed), USE_EVALUATION)

    @functools.partial(jax.jit, static_argnums=0)
    def _keys(self, sample_index: jax.Array) -> jax.Array:
        return jax.vmap(lambda i: jax.random.fold_in(self._root, i))(sample_index)

    @functools.partial(jax.jit, static_argnums=0)
    def _encode(self, frozen: dict, batch: dict):
        inputs = self.experiment.inputs
        example = inputs.encode(frozen, batch)
        found = example, inputs.conditions(frozen, example)
        if self.mesh is None:
            return found
        return jax.lax.with_sharding_constraint(found, sharding.batch_sharding(self.mesh))

    @functools.partial(jax.jit, static_argnums=0)
    def _losses(self, params: dict, small: dict, example, key: jax.Array) -> dict:
        loss = self.experiment.loss

        def of_window(params: dict, row: tuple) -> dict:
            small, example = row
            total, metrics = loss(params, example, key, loss.count(small))
            return loss.after_step({}, metrics)[1] | {"loss": total}

        return by_row(of_window, params, (small, example), self._specs)

    @functools.cached_property
    def _specs(self) -> dict[str, PartitionSpec]:
        if self.mesh is None:
            return {}
        model = self.experiment.model
        placed = sharding.shardings(model.axes(), {name: p.shape for name, p in model.shapes.items()}, self.mesh)
        return {name: one.spec for name, one in placed.items()}

    @functools.partial(jax.jit, static_argnums=(0, 5))
    def _compare(self, frozen: dict, video, latents, predicted, shown: int):
        """Errors [B, T] of pixels and [B, F] of latents, and uint8 frames [shown, T, H, W, 3], if any."""
        codec = self.experiment.encoders["video"]
        errors, frames = compare_video(codec, frozen["video"], video, latents, predicted)
        return errors | {name: x[:shown] for name, x in frames.items() if shown}


def pad_batch(batch: dict, size: int) -> dict:
    """The batch with copies of its first row up to `size` rows: one shape, one program."""
    return {name: np.concatenate([x, x[:1].repeat(size - len(x), 0)]) for name, x in batch.items()}


def compare_video(codec, frozen: dict, video, latents, predicted):
    """(errors [B, T] of pixels and [B, F] of latents, uint8 frames [B, T, H, W, 3]) of predicted latents, of a copy of
    the first frame and of the codec itself."""
    raw = video.astype(jnp.float32) / 127.5 - 1
    copied = codec.encode(frozen, jnp.repeat(raw[:, :1], raw.shape[1], axis=1))
    truth, imagined, copy = (codec.decode(frozen, x) for x in (latents, predicted, copied))
    pairs = {"video": (imagined, truth), "copy_last": (copy, truth), "codec": (truth, raw),
             "video_raw": (imagined, raw), "copy_last_raw": (copy, raw)}
    errors = {f"{name}_mse": image_metrics.mse(*pair) for name, pair in pairs.items()}
    errors |= {f"{name}_ssim": image_metrics.ssim(*pair, scores.PEAK) for name, pair in pairs.items()}
    errors |= {"latent_mse": image_metrics.mse(predicted, latents),
               "copy_last_latent_mse": image_metrics.mse(copied, latents),
               "latent_range": jnp.ptp(latents, axis=(1, 2, 3, 4))}
    frames = {"true": truth, "predicted": imagined, "copy_last": copy}
    return errors, {"frames_raw": video} | {
        f"frames_{name}": jnp.round((x + 1) * 127.5).astype(jnp.uint8) for name, x in frames.items()}
