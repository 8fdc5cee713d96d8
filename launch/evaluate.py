"""Open-loop evaluation on held-out episodes.

    python -m launch.evaluate --workdir=runs/quickstart [--step=1000] [--out=DIR]

Writes OUT/evaluation.json (default OUT: WORKDIR) and OUT/evaluation.npz. Three questions:

video   From the first frame (and the states, one per block) everything is rolled out, the model's own video fed
        back. Frames are compared through the codec on both sides: decoded prediction and decoded copy of the
        first frame against decoded truth. The codec's own error, decoded truth against raw pixels, stands beside.
action  Each block's actions are predicted with the real video before it. Mean square error in normalised units
        over real dimensions, beside the training mean and beside repeating the last command.
loss    The training loss, also by noise level, on fresh noise: a mean over windows.

Every held-out window counts once, up to evaluate.windows of them; unreadable ones are named and left out.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from data_pipelines.storage import files
from launch.evaluation.evaluator import NOISE_SAMPLES, SHOWN, Evaluator, pad_batch
from launch.reporting import scores
from launch.setup import flags as launch_flags
from launch.setup.restore import Restored, restore
from world_model.training import metrics
from world_model.training.checkpoint import CheckpointError


def evaluate(restored: Restored, say=print) -> tuple[dict, dict]:
    """(evaluation, arrays): what is written as JSON and npz. Arrays are per window; see `Evaluator`. "video" is left
    out where the family imagines none."""
    config, data, evaluator = restored.config, restored.data, Evaluator(restored.experiment, restored.mesh)
    params, size = restored.compute_params, evaluator.batch_size()
    rows, losses, there = [], [], data.heldout_windows
    wanted = min(config.evaluate.windows, there)
    if there < config.evaluate.windows:
        say(f"the held-out episodes have {there} windows, fewer than evaluate.windows = {config.evaluate.windows}")
    for batch in data.heldout_batches(size, wanted):
        count, whole = len(batch["sample_index"]), pad_batch(batch, size)
        small, example, conditions = evaluator.encode(restored.frozen, whole)
        found = evaluator.roll_out(params, restored.frozen, whole, example, conditions, data.heldout_robots,
                                   shown=SHOWN if not rows else 0)
        rows.append({name: value[:count] for name, value in found.items()})
        for sample in range(NOISE_SAMPLES):
            each = evaluator.losses(params, small, example, sample)
            losses += [{name: value[i] for name, value in each.items()} for i in range(count)]
        say(f"evaluated {min(wanted, sum(len(row['actions']) for row in rows))} of {wanted} windows")
    arrays = {name: np.concatenate([row[name] for row in rows if name in row]) for name in rows[0]}
    video = {"video": scores.video_scores(arrays)} if restored.experiment.family.imagines_video else {}
    evaluation = {"step": restored.step, "windows": len(arrays["actions"]), "heldout_windows": there,
                  "solver": dict(config.evaluate), **video,
                  "action": scores.action_scores(arrays, config.layout.actions_per_block),
                  "loss": metrics.reduce(losses)}
    return evaluation, arrays


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
    args = flags.FLAGS
    evaluation, arrays = evaluate(restore(args.workdir, args.step))
    write(Path(args.out or args.workdir), evaluation, arrays)
    print(describe(evaluation))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_run()
    flags.DEFINE_string("out", None, "directory of evaluation.json and evaluation.npz; default: workdir")
    launch_flags.run(main, CheckpointError)
