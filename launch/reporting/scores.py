"""Scores of an evaluation, as JSON values, from errors per window.

A PSNR is that of the mean error over all windows, because a still scene has no error and an infinite PSNR of its own.
"""

import numpy as np

from world_model.analysis import image_metrics

PEAK = 2.0  # range of pixel values


def video_scores(arrays: dict) -> dict:
    """Scores video by PSNR and SSIM over frames 1..T - 1 (frame 0 is given) and by frame.

    Latents are scored by PSNR too, whose peak is the largest range of a window's true latents.
    """
    scores, valid = {}, arrays["frame_mask"][:, 1:]
    by_frame: dict[str, list] = {"frame": list(range(1, arrays["frame_mask"].shape[1]))}
    for name in ("video", "copy_last", "codec", "video_raw", "copy_last_raw"):
        for unit, convert in (("psnr_db", _decibel), ("ssim", finite)):
            values = arrays[f"{name}_{'mse' if unit == 'psnr_db' else 'ssim'}"][:, 1:]
            scores[f"{name}_{unit}"] = convert(masked_mean(values, valid))
            by_frame[f"{name}_{unit}"] = [convert(x) for x in masked_mean(values, valid, axis=0)]
    valid, peak = arrays["latent_mask"][:, 1:], float(arrays["latent_range"].max())
    by_latent: dict[str, list] = {"frame": list(range(1, arrays["latent_mask"].shape[1]))}
    for name in ("latent", "copy_last_latent"):
        values = arrays[f"{name}_mse"][:, 1:]
        scores[f"{name}_psnr_db"] = _decibel(masked_mean(values, valid), peak)
        by_latent[f"{name}_psnr_db"] = [_decibel(x, peak) for x in masked_mean(values, valid, axis=0)]
    return scores | {"by_frame": by_frame, "by_latent_frame": by_latent}


def action_scores(arrays: dict, actions_per_block: int) -> dict:
    """Scores actions by mean square errors over real dimensions: over all, by step of a block and by block.

    Repeating the last command knows none before the first block: its error, and `model_after_first` beside it, leave
    that block out.
    """
    def blocks(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1, actions_per_block, x.shape[-1])

    truth, mask = arrays["actions"], arrays["action_mask"]
    known = mask & arrays["repeated_known"][..., None]
    scores, by_block = {}, {}
    by_step: dict[str, list] = {"step": list(range(actions_per_block))}
    for name, key, valid in (("model", "predicted_actions", mask), ("predict_mean", "mean_actions", mask),
                             ("model_after_first", "predicted_actions", known),
                             ("repeat_last", "repeated_actions", known)):
        error, valid = blocks(np.square(arrays[key] - truth)), blocks(valid)
        scores[f"{name}_mse"] = finite(masked_mean(error, valid))
        by_step[name] = [finite(x) for x in masked_mean(error, valid, axis=(0, 1, 3))]
        by_block[name] = [finite(x) for x in masked_mean(error, valid, axis=(0, 2, 3))]
    return scores | {"error_ratio": _ratio(scores["model_mse"], scores["predict_mean_mse"]),
                     "repeat_last_ratio": _ratio(scores["model_after_first_mse"], scores["repeat_last_mse"]),
                     "by_step": by_step, "by_block": by_block}


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def masked_mean(values: np.ndarray, mask: np.ndarray, axis=None) -> np.ndarray:
    """Averages the values where mask is True; NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mask, values, 0).sum(axis) / mask.sum(axis)


def finite(value: float) -> float | None:
    """Returns a JSON number; None for NaN and infinity, which JSON lacks."""
    return float(value) if np.isfinite(value) else None


def _decibel(error: float, peak: float = PEAK) -> float | None:
    return finite(image_metrics.psnr_of_mse(error, peak))
