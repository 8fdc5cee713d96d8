"""What a run reached, as numbers for programs, and the targets that they are held to.

This is WORKDIR/report/summary.json.
"""

import numpy as np

MINIMUM_GAIN_DB = 1.0  # rolled-out video over a copy of the first frame
MAXIMUM_ACTION_RATIO = 0.5  # the model's action error over that of the training mean
MAXIMUM_EXPORT_DIFFERENCE = 1e-4
MAXIMUM_SECONDS = 720
MINIMUM_SUCCESS = 0.3  # share of episodes solved in the simulator
VIDEO_KEYS = ("video_psnr_db", "copy_last_psnr_db", "codec_psnr_db")


def make_summary(evaluation: dict, metrics: list[dict], mixture: dict, *, seconds: float | None = None,
                 resume_bitwise: bool | None = None, export_max_abs_diff: float | None = None,
                 success_rate: float | None = None) -> dict:
    """summary.json. None stands for what was not measured. mixture: {dataset: {"asked", "realised"} fractions}. The
    keys of video are left out where the family imagines none; success_rate: of the model in a simulator."""
    speeds = [m["samples_per_second"] for m in metrics if "samples_per_second" in m]
    video = {key: evaluation["video"][key] for key in VIDEO_KEYS} if "video" in evaluation else {}
    return {
        "seconds": seconds, "steps": evaluation["step"],
        "samples_per_second": float(np.median(speeds)) if speeds else None,
        **video, "action_error_ratio": evaluation["action"]["error_ratio"],
        "repeat_last_ratio": evaluation["action"]["repeat_last_ratio"], "success_rate": success_rate,
        "mixture": mixture, "resume_bitwise": resume_bitwise, "export_max_abs_diff": export_max_abs_diff}


def targets(summary: dict) -> list[tuple[str, str, str, bool | None]]:
    """(what, reached, target, met) of each target; met is None where nothing was measured. Video has one where the
    family imagines it."""
    ratio, resumed = summary["action_error_ratio"], summary["resume_bitwise"]
    apart, seconds = summary["export_max_abs_diff"], summary["seconds"]
    rows = [
        *_video_target(summary),
        ("Action error, over that of predicting the mean", ratio, "{:.3f}", f"at most {MAXIMUM_ACTION_RATIO}",
         lambda x: x <= MAXIMUM_ACTION_RATIO),
        ("Episodes solved in the simulator", summary["success_rate"], "{:.0%}", f"at least {MINIMUM_SUCCESS:.0%}",
         lambda x: x >= MINIMUM_SUCCESS),
        ("Stopped and resumed equals uninterrupted", resumed, "{}", "bit for bit", lambda x: x is True),
        ("Exported to PyTorch, largest difference", apart, "{:.1e}", f"at most {MAXIMUM_EXPORT_DIFFERENCE:.0e}",
         lambda x: x <= MAXIMUM_EXPORT_DIFFERENCE),
        ("Whole run", seconds, "{:.0f} s", f"at most {MAXIMUM_SECONDS} s", lambda x: x <= MAXIMUM_SECONDS)]
    return [(what, "not measured" if value is None else form.format(value), target,
             None if value is None else bool(met(value))) for what, value, form, target, met in rows]


def _video_target(summary: dict) -> list[tuple]:
    if "video_psnr_db" not in summary:
        return []
    model, copy = summary["video_psnr_db"], summary["copy_last_psnr_db"]
    gain = None if model is None or copy is None else model - copy
    return [("Rolled-out video, above a copy of the first frame", gain, "{:+.2f} dB",
             f"at least {MINIMUM_GAIN_DB:+.1f} dB", lambda x: x >= MINIMUM_GAIN_DB)]
