"""Open-loop evaluation on held-out episodes.

    python -m launch.evaluate --workdir=runs/quickstart [--step=1000] [--out=DIR]

Writes OUT/evaluation.json (default OUT: WORKDIR) and OUT/evaluation.npz. Three questions:

video   From the first frame (and the states, one per block) everything is rolled out, the model's own video fed
        back. Frames are compared through the codec on both sides: decoded prediction and decoded copy of the
        first frame against decoded truth. The codec's own error, decoded truth against raw pixels, stands beside.
action  Each block's actions are predicted with the real video before it. Mean square error in normalised units
        over real dimensions, beside the training mean and beside repeating the last command.
loss    The training loss, also by noise level, on fresh draws.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.reporting import baselines, scores
from launch.setup import build
from launch.setup import flags as launch_flags
from world_model.analysis import image_metrics
from world_model.families.base.loss import Example, Objective
from world_model.families.base.sampler import Conditions
from world_model.training import metrics
from world_model.training.checkpoint import CheckpointError

SHOWN = 6  # windows whose frames are kept for the report
LOSS_DRAWS = 2  # noise draws per held-out window
USE_EVALUATION = 1000  # of random keys, beside those of world_model/families/base/loss.py


def evaluate(restored: build.Restored, say=print) -> tuple[dict, dict]:
    """(evaluation, arrays): what is written as JSON and npz. Arrays are per window; see `Evaluator`."""
    config, evaluator = restored.config, Evaluator.of(restored)
    rows, losses, there = [], [], restored.data.heldout_windows
    wanted = min(config.evaluate.windows, there)
    if there < config.evaluate.windows:
        say(f"the held-out episodes have {there} windows, fewer than evaluate.windows = {config.evaluate.windows}")
    for batch in restored.data.heldout_batches(config.evaluate.batch_size, wanted):
        rows.append(evaluator.windows(batch, shown=SHOWN if not rows else 0))
        losses += [jax.device_get(evaluator.loss(batch, draw)) for draw in range(LOSS_DRAWS)]
        say(f"evaluated {min(wanted, sum(len(row['frame_mask']) for row in rows))} of {wanted} windows")
    arrays = {name: np.concatenate([row[name] for row in rows if name in row]) for name in rows[0]}
    evaluation = {"step": restored.step, "windows": len(arrays["frame_mask"]), "heldout_windows": there,
                  "solver": dict(config.evaluate), "video": scores.video_scores(arrays),
                  "action": scores.action_scores(arrays, config.layout.actions_per_block),
                  "loss": metrics.reduce(losses)}
    return evaluation, arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """A restored model with its compiled rollout."""

    restored: build.Restored
    rollout: Callable  # of the family; see world_model/families/base/sampler.py
    params: dict

    @classmethod
    def of(cls, restored: build.Restored) -> "Evaluator":
        """Computes in the dtype that was trained in."""
        c = restored.config
        rollout = restored.family.rollout(**build.rollout_settings(c))
        return cls(restored, rollout, jax.tree.map(lambda p: p.astype(c.train.compute_dtype), restored.params))

    def windows(self, batch: dict, shown: int) -> dict[str, np.ndarray]:
        """Errors and predictions of a batch, with frames of the first `shown` windows; numpy, B leading."""
        objective, keys = self.restored.objective, self._keys(batch)
        example, conditions = _encode(objective, batch)
        imagined = self.rollout(self.params, conditions, keys)
        reacting = self.rollout(self.params, conditions, keys, history=example.latents)
        errors, frames = _compare(objective, batch["video"], example.latents, imagined.latents)
        datasets = self.restored.data.heldout_robots
        repeated, known = baselines.repeated_actions(batch, datasets, self.restored.family.spec.layout)
        return jax.device_get(errors | {name: value[:shown] for name, value in frames.items() if shown}) | {
            "frame_mask": batch["frame_mask"], "latent_mask": np.asarray(example.frame_valid),
            "actions": batch["actions"], "action_mask": batch["action_mask"],
            "predicted_actions": np.asarray(reacting.actions), "repeated_known": known,
            "repeated_actions": repeated, "mean_actions": baselines.mean_actions(batch, datasets)}

    def loss(self, batch: dict, draw: int) -> dict:
        """The objective's metrics on fresh noise."""
        return _loss(self.restored.objective, self.params, batch, jax.random.fold_in(self._root, draw))

    @property
    def _root(self) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.restored.config.seed), USE_EVALUATION)

    def _keys(self, batch: dict) -> jax.Array:
        return jax.vmap(lambda i: jax.random.fold_in(self._root, i))(batch["sample_index"])


@jax.jit
def _encode(objective: Objective, batch: dict) -> tuple[Example, Conditions]:
    example = objective.encode(batch)
    return example, Conditions(
        example.latents[:, :1], example.text, example.state, example.condition, example.image,
        unconditional_text=objective.empty_text(len(example.text)), actions=example.actions,
        action_mask=example.action_mask)


@jax.jit
def _loss(objective: Objective, params: dict, batch: dict, key: jax.Array) -> dict:
    return objective.loss(params, batch, key, objective.count(batch))[1]


@jax.jit
def _compare(objective: Objective, video, latents, predicted):
    """(errors [B, T] of pixels and [B, F] of latents, uint8 frames [B, T, H, W, 3])."""
    codec, frozen = objective.codec, objective.frozen["video"]
    raw = video.astype(jnp.float32) / 127.5 - 1
    copied = codec.encode(frozen, jnp.repeat(raw[:, :1], raw.shape[1], axis=1))
    truth, ours, copy = (codec.decode(frozen, x) for x in (latents, predicted, copied))
    pairs = {"video": (ours, truth), "copy_last": (copy, truth), "codec": (truth, raw),
             "video_raw": (ours, raw), "copy_last_raw": (copy, raw)}
    errors = {f"{name}_mse": image_metrics.mse(*pair) for name, pair in pairs.items()}
    errors |= {f"{name}_ssim": image_metrics.ssim(*pair, scores.PEAK) for name, pair in pairs.items()}
    errors |= {"latent_mse": image_metrics.mse(predicted, latents),
               "copy_last_latent_mse": image_metrics.mse(copied, latents),
               "latent_range": jnp.ptp(latents, axis=(1, 2, 3, 4))}
    to_bytes = lambda x: jnp.round((x + 1) * 127.5).astype(jnp.uint8)
    return errors, {"frames_raw": video, "frames_true": to_bytes(truth), "frames_predicted": to_bytes(ours),
                    "frames_copy_last": to_bytes(copy)}


def write(out: Path, evaluation: dict, arrays: dict) -> None:
    """OUT/evaluation.json and OUT/evaluation.npz."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(evaluation, indent=1, allow_nan=False) + "\n")
    np.savez_compressed(out / "evaluation.npz", **arrays)


def describe(evaluation: dict) -> str:
    """Three lines for the terminal."""
    video, action, loss = evaluation["video"], evaluation["action"], evaluation["loss"]
    number = lambda x: "none" if x is None else f"{x:.3g}"
    return (f"video {number(video['video_psnr_db'])} dB, copy-last-frame {number(video['copy_last_psnr_db'])} dB, "
            f"codec {number(video['codec_psnr_db'])} dB\n"
            f"action error {number(action['model_mse'])}, predict-the-mean {number(action['predict_mean_mse'])}, "
            f"ratio {number(action['error_ratio'])}; after the first block {number(action['model_after_first_mse'])}, "
            f"repeat-last {number(action['repeat_last_mse'])}\n"
            f"loss: video {number(loss['video_loss'])}, action {number(loss['action_loss'])}")


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    try:
        evaluation, arrays = evaluate(build.restore(args.workdir, args.step))
        write(Path(args.out or args.workdir), evaluation, arrays)
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"evaluate: {error}")
    print(describe(evaluation))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    flags.DEFINE_string("workdir", None, "directory of the training run")
    flags.DEFINE_integer("step", None, "checkpoint step; default: the newest")
    flags.DEFINE_string("out", None, "directory of evaluation.json and evaluation.npz; default: workdir")
    flags.mark_flags_as_required(["workdir"])
    launch_flags.run(main)
