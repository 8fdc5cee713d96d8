"""Open-loop evaluation on held-out episodes.

    python -m launch.evaluate --workdir=runs/quickstart [--step=1000] [--out=DIR]

Writes OUT/evaluation.json (default OUT: WORKDIR) and OUT/evaluation.npz. Three questions:

video   From the first frame (and the states, one per block) everything is rolled out, the model's own video fed
        back. Frames are compared through the codec on both sides: decoded prediction and decoded copy of the
        first frame against decoded truth. The codec's own error, decoded truth against raw pixels, stands beside.
action  Each block's actions are predicted with the real video before it. Mean square error in normalised units
        over real dimensions, beside the training mean and beside repeating the last command.
loss    The training loss, also by noise level, on fresh draws: a mean over windows.

Every held-out window counts once, up to evaluate.windows of them; unreadable ones are named and left out.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from data_pipelines.storage import files
from launch.reporting import baselines, scores
from launch.setup import flags as launch_flags
from launch.setup.restore import Restored, restore
from world_model.analysis import image_metrics
from world_model.training import metrics
from world_model.training.checkpoint import CheckpointError

SHOWN = 6  # windows whose frames are kept for the report
LOSS_DRAWS = 2  # noise draws per held-out window
USE_EVALUATION = 1000  # of random keys, beside those of the families' losses


def evaluate(restored: Restored, say=print) -> tuple[dict, dict]:
    """(evaluation, arrays): what is written as JSON and npz. Arrays are per window; see `Evaluator`. "video" is left
    out where the family imagines none."""
    config, evaluator = restored.config, Evaluator(restored)
    rows, losses, there = [], [], restored.data.heldout_windows
    wanted = min(config.evaluate.windows, there)
    if there < config.evaluate.windows:
        say(f"the held-out episodes have {there} windows, fewer than evaluate.windows = {config.evaluate.windows}")
    for batch in restored.data.heldout_batches(config.evaluate.batch_size, wanted):
        count = len(batch["sample_index"])
        whole = filled(batch, config.evaluate.batch_size)
        found = evaluator.windows(whole, shown=SHOWN if not rows else 0)
        rows.append({name: value[:count] for name, value in found.items()})
        for draw in range(LOSS_DRAWS):
            each = jax.device_get(evaluator.losses(whole, draw))
            losses += [{name: value[i] for name, value in each.items()} for i in range(count)]
        say(f"evaluated {min(wanted, sum(len(row['actions']) for row in rows))} of {wanted} windows")
    arrays = {name: np.concatenate([row[name] for row in rows if name in row]) for name in rows[0]}
    video = {"video": scores.video_scores(arrays)} if restored.experiment.family.imagines_video else {}
    evaluation = {"step": restored.step, "windows": len(arrays["actions"]), "heldout_windows": there,
                  "solver": dict(config.evaluate), **video,
                  "action": scores.action_scores(arrays, config.layout.actions_per_block),
                  "loss": metrics.reduce(losses)}
    return evaluation, arrays


def filled(batch: dict, size: int) -> dict:
    """The batch with copies of its first row up to `size` rows: one shape, one program."""
    return {name: np.concatenate([x, x[:1].repeat(size - len(x), 0)]) for name, x in batch.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """A restored model with its compiled sampler, in the dtype that was trained in."""

    restored: Restored

    @functools.cached_property
    def sampler(self):
        """The family's; see world_model/families/base/sampler.py."""
        return self.restored.experiment.sampler()

    def windows(self, batch: dict, shown: int) -> dict[str, np.ndarray]:
        """Errors and predictions of a batch, with frames of the first `shown` windows; numpy, B leading."""
        example, conditions = self._encode(self.restored.frozen, batch)
        keys, params = self._keys(batch), self.restored.compute_params
        found = {}
        if self.restored.experiment.family.imagines_video:
            imagined = self.sampler(params, conditions, keys)
            found = self._video(batch, example, imagined.latents, shown)
            reacting = self.sampler(params, conditions, keys, history=example.latents)
        else:
            reacting = self.sampler(params, conditions, keys)
        datasets = self.restored.data.heldout_robots
        repeated, known = baselines.repeated_actions(batch, datasets, self.restored.experiment.layout)
        return found | {
            "actions": batch["actions"], "action_mask": batch["action_mask"],
            "predicted_actions": np.asarray(reacting.actions), "repeated_known": known,
            "repeated_actions": repeated, "mean_actions": baselines.mean_actions(batch, datasets)}

    def losses(self, batch: dict, draw: int) -> dict:
        """The loss's metrics of every window alone, [B], on fresh noise: the batch size changes none."""
        return self._losses(self.restored.compute_params, self.restored.frozen, batch,
                          jax.random.fold_in(self._root, draw))

    def _video(self, batch: dict, example, predicted, shown: int) -> dict[str, np.ndarray]:
        """Errors of imagined video, and frames of the first `shown` windows."""
        errors, frames = self._compare(self.restored.frozen, batch["video"], example.latents, predicted)
        kept = errors | {name: value[:shown] for name, value in frames.items() if shown}
        return jax.device_get(kept) | {"frame_mask": batch["frame_mask"],
                                       "latent_mask": np.asarray(example.frame_valid)}

    @property
    def _root(self) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.restored.config.seed), USE_EVALUATION)

    def _keys(self, batch: dict) -> jax.Array:
        return jax.vmap(lambda i: jax.random.fold_in(self._root, i))(batch["sample_index"])

    @functools.partial(jax.jit, static_argnums=0)
    def _encode(self, frozen: dict, batch: dict):
        inputs = self.restored.experiment.inputs
        example = inputs.encode(frozen, batch)
        return example, inputs.conditions(frozen, example)

    @functools.partial(jax.jit, static_argnums=0)
    def _losses(self, params: dict, frozen: dict, batch: dict, key: jax.Array) -> dict:
        experiment = self.restored.experiment

        def of_window(row: dict) -> dict:
            alone = jax.tree.map(lambda x: x[None], row)
            _, metrics = experiment.loss_fn(params, alone, key, experiment.loss.count(alone), frozen)
            return experiment.loss.after_step({}, metrics)[1]

        return jax.lax.map(of_window, batch)

    @functools.partial(jax.jit, static_argnums=0)
    def _compare(self, frozen: dict, video, latents, predicted):
        """(errors [B, T] of pixels and [B, F] of latents, uint8 frames [B, T, H, W, 3])."""
        return compare_video(self.restored.experiment.encoders["video"], frozen["video"], video, latents, predicted)


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


def write(out: Path, evaluation: dict, arrays: dict) -> None:
    """OUT/evaluation.npz and, once that is whole, OUT/evaluation.json."""
    text = json.dumps(evaluation, indent=1, allow_nan=False) + "\n"
    with files.new_file(f"{out}/evaluation.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
    files.write_text(f"{out}/evaluation.json", text)


def describe(evaluation: dict) -> str:
    """A line each on video, where it is imagined, actions and loss."""
    video, action, loss = evaluation.get("video"), evaluation["action"], evaluation["loss"]
    lines = [] if video is None else [
        f"video {_number(video['video_psnr_db'])} dB, copy-last-frame {_number(video['copy_last_psnr_db'])} dB, codec "
        f"{_number(video['codec_psnr_db'])} dB"]
    lines.append(
        f"action error {_number(action['model_mse'])}, predict-the-mean {_number(action['predict_mean_mse'])}, ratio "
        f"{_number(action['error_ratio'])}; after the first block {_number(action['model_after_first_mse'])}, "
        f"repeat-last {_number(action['repeat_last_mse'])}")
    parts = [f"{name} {_number(loss[f'{name}_loss'])}" for name in ("video", "action") if f"{name}_loss" in loss]
    return "\n".join([*lines, f"loss: {', '.join(parts)}"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    evaluation, arrays = evaluate(restore(args.workdir, args.step))
    write(Path(args.out or args.workdir), evaluation, arrays)
    print(describe(evaluation))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    flags.DEFINE_string("workdir", None, "directory of the training run")
    flags.DEFINE_integer("step", None, "checkpoint step; default: the newest")
    flags.DEFINE_string("out", None, "directory of evaluation.json and evaluation.npz; default: workdir")
    flags.mark_flags_as_required(["workdir"])
    launch_flags.run(main, CheckpointError)
